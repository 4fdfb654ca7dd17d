"""Recordings of either kind, sound or sensors: found, and read as what a topic carries."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pipeline import audio, sensor
from pipeline.component import Array
from pipeline.errors import AudioError, TableError
from pipeline.manifest import InputSpec


def find(paths: list[Path]) -> list[Path]:
    """Files as given, folders as the recordings within them, sorted: of sound, or, where there is none, of sensors.

    Raises:
        AudioError: there are none.
    """
    found: list[Path] = []
    for path in paths:
        tables = sorted(p for p in path.rglob("*") if sensor.is_table(p) and p.is_file()) if os.path.isdir(path) else []
        try:
            found += audio.recordings([path])
        except AudioError:
            found += tables
    if not found:
        raise AudioError(
            f"no recordings in {', '.join(map(str, paths))}: expected .wav, .flac, .ogg, ..., "
            f"or of sensors {', '.join(sensor.SUFFIXES)}"
        )
    return found


def read(
    path: Path,
    spec: InputSpec,
    columns: tuple[str, ...] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Array:
    """`read_with_rate` where the rate is known: the input's."""
    return read_with_rate(path, spec, columns, warn)[0]


def read_with_rate(
    path: Path,
    spec: InputSpec,
    columns: tuple[str, ...] | None = None,
    warn: Callable[[str], None] | None = None,
) -> tuple[Array, float]:
    """A recording as `[N, channels]` of the input's sample type, and its rate in Hz: the input's, but for a table
    that tells its own where the input is of any rate. Sound is resampled, sensors are not.

    Args:
        columns: of a table, in the channels' order; None: all but the times.
        warn: is told what is odd and does not stop anybody.
    Raises:
        RecordingError: it cannot be read, or is not what the input takes.
    """
    if not sensor.is_table(path):
        if columns is not None:
            raise TableError(f"{path}: --columns chooses columns of .csv, .tsv and .npz files; this is none")
        return audio.read(path, spec), spec.sample_rate_hz
    table = sensor.read_table(path, columns)
    samples = sensor.fit(table, spec, str(path))
    if warn is not None and (odd := sensor.gaps(table, str(path))):
        warn(odd)
    own = spec.any_rate and table.step_s
    return samples, 1 / own if own else spec.sample_rate_hz
