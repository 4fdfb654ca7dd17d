"""Recordings and raw PCM to the samples that a topic carries. Reading and resampling are libraries' work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.component import Array
from pipeline.errors import AudioError
from pipeline.manifest import InputSpec
from pipeline.regular import why_none
from pipeline.samples import off_scale, to_sample_type

_ARRAYS = ("npz, or another zip", "npy")
_MAGIC = {
    b"fLaC": "FLAC",
    b"RIFF": "WAV",
    b"RF64": "WAV",
    b"OggS": "Ogg",
    b"ID3": "MP3",
    b"FORM": "AIFF",
    b".snd": "AU",
    b"caff": "CAF",
    b"\x1aE\xdf\xa3": "WebM",
    b"PK\x03\x04": _ARRAYS[0],
    b"\x93NUMPY": _ARRAYS[1],
}
_INT16_SUBTYPES = {"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW"}


def read(path: Path, spec: InputSpec) -> Array:
    """A recording as `[N, channels]` of the input's sample type, at its rate.

    Any format that soundfile reads; resampled by soxr (HQ); several channels are averaged when one is wanted.
    Raises AudioError: not there, not readable, other channels than wanted, NaN or infinity, or floats far beyond -1..1
    where int16 is wanted.
    """
    import soundfile

    if (why := why_none(path)) is not None:
        raise AudioError(f"{path}: {why}")
    try:
        with soundfile.SoundFile(path) as recording:
            rate_hz = recording.samplerate
            exact = recording.subtype in _INT16_SUBTYPES
            samples = recording.read(dtype="int16" if exact else "float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        # TypeError: a headerless format (.raw). MemoryError: a header that promises more than there can be.
        raise AudioError(f"{path}: not a recording that libsndfile can read ({error})") from None
    return fit(samples, rate_hz, spec, str(path))


def fit(samples: Array, rate_hz: float, spec: InputSpec, source: str) -> Array:
    """Bring `[N, channels]` samples to the input's channels, rate and sample type. Raises AudioError."""
    if samples.shape[1] != spec.channels and spec.channels != 1:
        raise AudioError(
            f"{source}: {samples.shape[1]} channel{'s' * (samples.shape[1] != 1)}, expected {spec.channels}"
        )
    if samples.shape[1] == spec.channels and rate_hz == spec.sample_rate_hz and samples.dtype == spec.sample_type:
        return _finite(samples, source)
    x = samples.astype(np.float32) / 32768 if samples.dtype == np.int16 else samples.astype(np.float32)
    _finite(x, source)  # before any conversion: NaN as int16 would be some number
    # Before resampling: between loud samples it makes peaks that nobody can help.
    if samples.dtype.kind == "f" and spec.sample_type == "int16" and (fault := off_scale(x)):
        raise AudioError(f"{source}: {fault}")
    if x.shape[1] != spec.channels:
        x = x.mean(axis=1, keepdims=True)
    if rate_hz != spec.sample_rate_hz and len(x):
        import soxr

        x = soxr.resample(x, rate_hz, spec.sample_rate_hz, quality="HQ")
    return to_sample_type(x, spec.sample_type)


def _finite(samples: Array, source: str) -> Array:
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise AudioError(f"{source}: holds NaN or infinity; repair the recording")
    return samples


def pcm(stream: BinaryIO, spec: InputSpec, chunk_samples: int) -> Iterator[Array]:
    """Raw little-endian PCM of the topic's own rate and type, `[n, channels]` at a time, as it arrives.

    Raises AudioError when it begins as a recording's file does, or ends within a sample.
    """
    dtype = np.dtype(spec.sample_type).newbyteorder("<")
    sample_bytes = dtype.itemsize * spec.channels
    first = True
    while data := stream.read(chunk_samples * sample_bytes):
        if first and (kind := _encoded(data)):
            raise AudioError(f"standard input is {kind}, not raw PCM. Push the file itself{_decode(kind, spec)}")
        first = False
        odd = len(data) % sample_bytes
        if len(data) > odd:
            yield np.frombuffer(data, dtype, (len(data) - odd) // dtype.itemsize).reshape(-1, spec.channels)
        if odd:
            raise AudioError(
                f"standard input ended within a sample: {odd} of {sample_bytes} bytes "
                f"({spec.channels} x {spec.sample_type}); what came before was pushed"
            )


def _encoded(head: bytes) -> str | None:
    """What a file is by its first bytes, where it is no raw PCM. (The odds that PCM begins so are 1 to 16 million.)"""
    if head[4:8] == b"ftyp":
        return "MP4"
    if head[:1] == b"\xff" and (b"Xing" in head[:64] or b"Info" in head[:64]):  # without tags, as lame writes it
        return "MP3"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _decode(kind: str, spec: InputSpec) -> str:
    if kind in _ARRAYS:
        return ""
    form = "s16le" if spec.sample_type == "int16" else "f32le"
    asked = "; of arecord, say -t raw" if kind == "WAV" else ""
    flags = f"-f {form} -ac {spec.channels} -ar {spec.sample_rate_hz:g}"
    return f", or decode it first: ffmpeg -i FILE {flags} - | statebelt push -{asked}"


def recordings(paths: list[Path]) -> list[Path]:
    """Files as given, folders as the recordings within them, sorted. Raises AudioError if there are none."""
    import soundfile

    known = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".opus", ".oga"}
    found: list[Path] = []
    for path in paths:
        if os.path.isdir(path):  # of a path that cannot be, too: it is told when it is read
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in known and p.is_file())
        else:
            found.append(path)
    if not found:
        raise AudioError(f"no recordings in {', '.join(map(str, paths))}: expected .wav, .flac, .ogg, ...")
    return found
