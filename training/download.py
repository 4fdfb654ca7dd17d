"""Fetch the corpora from their publishers into the folder that STATEBELT_DATA names.

    STATEBELT_DATA=somewhere python -m training.download

Each corpus is unpacked into the layout that `training.data` reads, then checked: the sha256 over names and decoded
samples of all its recordings must be the one below, taken from the recordings this project was trained on. The hash
is of what was recorded, not of an archive, which publishers repack. Written without a network to try it on: only the
hash was tested. If a publisher has moved a file, the check says so and nothing is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from training import data

FSDD = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"
ARABIC = "https://zenodo.org/records/4662481/files/dataset.zip"
COMMANDS = "https://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"

SPLITS = {
    "train": (1, 5, 6, 9, 11, 13, 15, 16, 17, 18, 19, 20, 22, 23, 24, 27, 29, 30),
    "val": (2, 7, 8, 12, 21, 25),
}
TAKES = range(1, 6)
NOISES = ("doing_the_dishes", "dude_miaowing", "exercise_bike", "pink_noise", "running_tap", "white_noise")
SHA256: dict[str, str] = json.loads((Path(__file__).parent / "corpora.json").read_text())


def recorded(folder: Path) -> str:
    """The sha256 of a corpus: every FLAC's path and int16 samples, in the order of their paths."""
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*.flac")):
        samples, rate_hz = soundfile.read(file, dtype="int16")
        total.update(f"{file.relative_to(folder).as_posix()} {rate_hz} {len(samples)}\n".encode())
        total.update(np.ascontiguousarray(samples, "<i2").tobytes())
    return total.hexdigest()


def fetch(url: str, to: Path) -> Path:
    """One file, with a progress bar."""
    with urllib.request.urlopen(url, timeout=60) as answer, to.open("wb") as file:
        size = int(answer.headers.get("Content-Length", 0)) or None
        with tqdm.wrapattr(answer, "read", total=size, desc=url.rsplit("/", 1)[1]) as body:
            shutil.copyfileobj(body, file)
    return to


def _wavs(archive: Path) -> Iterator[tuple[str, bytes]]:
    """(path inside, bytes) of every WAV in a zip or tar."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as whole:
            yield from ((name, whole.read(name)) for name in whole.namelist() if name.lower().endswith(".wav"))
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            body = packed.extractfile(member) if member.name.lower().endswith(".wav") else None
            if body is not None:
                yield member.name, body.read()


def _fsdd(path: str) -> str | None:
    digit, speaker, take = Path(path).stem.split("_")
    return f"{speaker}/{digit}_{take}.flac" if speaker in data.SPEAKERS else None


def _arabic(path: str) -> str | None:
    """The publisher's `<word>/<speaker, 8 digits><noise or not>_<word><take>.wav` by its digits alone."""
    word, stem = Path(path).parent.name, Path(path).stem
    speaker, take = stem[6:8], int(stem[-2:])
    split = next((name for name, speakers in SPLITS.items() if int(speaker) in speakers), None)
    return f"{split}/{speaker}/{word}_{take:02d}.flac" if split and take in TAKES else None


def _noise(path: str) -> str | None:
    stem = Path(path).stem
    return f"{stem}.flac" if "_background_noise_" in path and stem in NOISES else None


SOURCES = {"fsdd": (FSDD, _fsdd), "arabic_commands": (ARABIC, _arabic), "noise": (COMMANDS, _noise)}


def corpus(name: str, into: Path) -> None:
    """Fetch, unpack and check one corpus; it appears under `into` only when its hash is right."""
    url, place = SOURCES[name]
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=f".{name}-") as temporary:
        folder = Path(temporary) / name
        for path, body in _wavs(fetch(url, Path(temporary) / "archive")):
            if target := place(path):
                samples, rate_hz = soundfile.read(io.BytesIO(body), dtype="int16")
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(folder / target, samples, rate_hz, subtype="PCM_16")
        if (found := recorded(folder)) != SHA256[name]:
            sys.exit(f"{name}: the recordings at {url} have the hash {found}, expected {SHA256[name]}; not used")
        folder.rename(into / name)


if __name__ == "__main__":
    for wanted in SOURCES:
        if (data.folder() / wanted).is_dir():
            print(f"{wanted}: already at {data.folder() / wanted}")
        else:
            corpus(wanted, data.folder())
