"""The corpora: recordings to labelled clips, split by speaker and never by clip.

They lie in the folder that STATEBELT_DATA names (by default `../shared/data` beside the repository):
`fsdd/<speaker>/<digit>_<take>.flac`, `arabic_commands/{train,val}/<speaker>/<word>_<take>.flac`, `noise/*.flac`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.errors import ConfigError

Samples = NDArray[np.float32]
ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs"
BACKGROUND = "background"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LABELS = (*DIGITS, BACKGROUND)
SPEAKERS = ("george", "jackson", "nicolas", "yweweler")


@dataclass(frozen=True)
class Clip:
    """One utterance: `[N]` float32 samples in -1..1 at 8 kHz, its label and who spoke it.

    A label is an index into LABELS; above those, words of other speech are counted on (`others`).
    """

    samples: Samples
    label: int
    speaker: str


def folder() -> Path:
    """Where the corpora lie."""
    return Path(os.environ.get("STATEBELT_DATA", ROOT.parent / "shared" / "data"))


def corpus(name: str) -> Path:
    """The folder of one corpus. Raises ConfigError that says what to do when it is absent."""
    path = folder() / name
    if not path.is_dir():
        raise ConfigError(
            f"the corpus {name!r} is not at {path}: point STATEBELT_DATA at a folder that holds it, or run "
            "`python -m training.download` to fetch it from its publisher"
        )
    return path


def read(path: Path, sample_rate_hz: int = 8000) -> Samples:
    """One recording as `[N]` float32, mono, at `sample_rate_hz`."""
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1, dtype=np.float32)
    if rate_hz != sample_rate_hz:
        mono = soxr.resample(mono, rate_hz, sample_rate_hz)
    return np.asarray(mono, np.float32)


@cache
def digits(speakers: tuple[str, ...] = SPEAKERS, takes: int = 0) -> tuple[Clip, ...]:
    """Every take of every digit by these speakers of FSDD, or so many of each, in a fixed order."""
    found = []
    for speaker in speakers:
        files = sorted((corpus("fsdd") / speaker).glob("*.flac"))
        if not files:
            raise ConfigError(f"FSDD has no speaker {speaker!r} under {corpus('fsdd')}")
        found += [Clip(read(file), int(file.stem.split("_")[0]), speaker) for file in _some(files, takes)]
    return tuple(found)


@cache
def others(split: str, takes: int = 0) -> tuple[Clip, ...]:
    """Speech that holds no English digit: Arabic commands, `train` or `val` speakers (the corpus's own split).

    Labels count on from LABELS, one for each word.
    """
    files = _some(sorted((corpus("arabic_commands") / split).glob("*/*.flac")), takes)
    names = [file.stem.rsplit("_", 1)[0] for file in files]
    label = {name: len(LABELS) + n for n, name in enumerate(sorted(set(names)))}
    return tuple(
        Clip(read(file), label[name], f"arabic-{file.parent.name}") for file, name in zip(files, names, strict=True)
    )


def _some(files: list[Path], takes: int) -> list[Path]:
    """The first so many takes `<word>_<take>` of each folder's every word; all, if 0."""
    kept: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        kept.setdefault((file.parent, file.stem.rsplit("_", 1)[0]), []).append(file)
    return sorted(file for group in kept.values() for file in group[: takes or None])


@cache
def noises(part: str = "train") -> tuple[Samples, ...]:
    """Background noises: the first two thirds of each recording for `train`, the rest for `test`."""
    whole = [read(file) for file in sorted(corpus("noise").glob("*.flac"))]
    return tuple(x[: x.size * 2 // 3] if part == "train" else x[x.size * 2 // 3 :] for x in whole)


def sha256(names: Iterable[str] = ("fsdd", "arabic_commands", "noise")) -> str:
    """One hash over names and bytes of all recordings of these corpora: the provenance's `data_sha256`."""
    total = hashlib.sha256()
    for name in names:
        for file in sorted(corpus(name).rglob("*.flac")):
            total.update(str(file.relative_to(folder())).encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def word(label: int) -> str:
    """The label's name.

    >>> word(7)
    'seven'
    """
    return LABELS[label]
