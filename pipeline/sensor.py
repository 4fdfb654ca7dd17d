"""Recordings of sensors, CSV and npz files, to the samples that a topic carries. They are never resampled.

A file is taken at the topic's rate: one row is one sample. Where a file tells its own rate and it is another one, it is
refused; an .npz file and a .csv file without times tell none.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.component import Array
from pipeline.csvfile import Table, pick, read_csv, told
from pipeline.errors import TableError
from pipeline.manifest import InputSpec
from pipeline.regular import why_none

SUFFIXES = (".csv", ".tsv", ".npz")
_RATE_TOLERANCE = 0.01


def is_table(path: Path) -> bool:
    """By its name: a file of sensor samples, not of sound.

    >>> is_table(Path("walk.npz"))
    True
    """
    return path.suffix.lower() in SUFFIXES


def read_table(path: Path, columns: tuple[str, ...] | None = None) -> Table:
    """A file's numbers as they are, of the columns asked for (all but the times). Raises TableError."""
    if (why := why_none(path)) is not None:
        raise TableError(f"{path}: {why}")
    return _read_npz(path, columns) if path.suffix.lower() == ".npz" else read_csv(path, columns)


def read(path: Path, spec: InputSpec, columns: tuple[str, ...] | None = None) -> Array:
    """A file as `[N, channels]` of the input's sample type. Raises TableError as `read_table` and `fit` do."""
    return fit(read_table(path, columns), spec, str(path))


def fit(table: Table, spec: InputSpec, source: str) -> Array:
    """A table as `[N, channels]` samples of the input's type.

    Raises TableError: other columns than channels, another rate, numbers that the sample type does not hold.
    """
    if len(table.columns) != spec.channels:
        raise TableError(
            f"{source}: {told(table.columns)}, expected {spec.channels}: choose with --columns, in the channels' order"
        )
    rate_hz = spec.sample_rate_hz
    if not spec.any_rate and table.step_s is not None and abs(table.step_s * rate_hz - 1) > _RATE_TOLERANCE:
        raise TableError(
            f"{source}: its times are {table.step_s:g} s apart, expected {1 / rate_hz:g} s ({rate_hz:g} Hz): it is not "
            "resampled; resample it yourself, or use a topic and a bundle of its rate"
        )
    if spec.sample_type == "int16":
        return _whole(table.values, source)
    if len(table.values) and np.abs(table.values).max() > np.finfo(np.float32).max:
        raise TableError(f"{source}: a value is beyond what float32 holds (3.4e38)")
    return table.values.astype(np.float32)


def gaps(table: Table, source: str) -> str | None:
    """What a person should know of its times: samples are taken one behind the other, whatever is missing between."""
    if not table.uneven:
        return None
    return (
        f"{source}: {table.uneven} of {len(table.values) - 1} rows do not follow the one before by {table.step_s:g} s; "
        "they are taken one behind the other"
    )


def _whole(values: Array, source: str) -> Array:
    whole = np.rint(values)
    if (whole != values).any() or (np.abs(values + 0.5) > 32767.5).any():
        raise TableError(
            f"{source}: the topic carries int16, but not all values are whole numbers in -32768..32767; use a topic of "
            "float32"
        )
    return whole.astype(np.int16)


def _read_npz(path: Path, columns: tuple[str, ...] | None) -> Table:
    """The first float array `[N, C]` of an archive; where there is none, the first one `[N]`."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise TableError(f"{path}: one array and no archive; write it with np.savez")
        with archive:
            found = _first(archive)
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error):
        # numpy takes whatever it does not know for a pickle, and its message says how to load one unsafely.
        raise TableError(f"{path}: cannot be read as .npz; write it with np.savez") from None
    if isinstance(found, str):
        raise TableError(f"{path}: no float array [N, C] in it; it holds {found or 'nothing'}")
    values = found.astype(np.float64).reshape(len(found), -1)
    names = tuple(map(str, range(values.shape[1])))
    table = Table(values, names)
    if columns is not None:
        places = pick(str(path), names, columns)
        table = replace(table, values=values[:, places], columns=tuple(columns))
    bad = np.flatnonzero(~np.isfinite(table.values).all(axis=1))
    if bad.size:
        raise TableError(f"{path}: NaN or infinity in row {bad[0]} (and {bad.size - 1} more); repair the recording")
    return table


def _first(archive: np.lib.npyio.NpzFile) -> Array | str:
    """The array, or what there is instead."""
    alone, about = None, []
    for name in archive.files:
        try:
            array = archive[name]
        except ValueError:  # objects, which are never unpickled
            about.append(f"{name} (objects)")
            continue
        if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1]:
            return array
        if array.dtype.kind == "f" and array.ndim == 1 and alone is None:
            alone = array
        about.append(f"{name} ({array.dtype} {list(array.shape)})")
    return ", ".join(about)[:400] if alone is None else alone
