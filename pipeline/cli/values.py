"""Values of flags that need more than a type: a file of numbers, a rate that is a fraction, names of columns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.component import Array

Given = Annotated[
    Path | None,
    typer.Option(help="A .npy file of float32: what each stream is given before its samples (a speaker's embedding)."),
]


def finite(value: float | None) -> float | None:
    """A flag's number as it is. Raises BadParameter for `inf` and `nan`, which Python reads as numbers.

    >>> finite(0.5)
    0.5
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not finite: give a number")
    return value


_WRITE_ONE = "write one with numpy.save(path, values.astype('float32'))"


def _rate(text: str) -> float:
    """A number, or a fraction of two: `1/3600` is once an hour.

    >>> _rate("1/4")
    0.25
    """
    from fractions import Fraction

    try:
        rate_hz = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        rate_hz = 0.0
    if not 0 < rate_hz < float("inf"):
        raise typer.BadParameter(f"{text!r} is no rate: give Hz above 0, as a number or a fraction such as 1/3600")
    return rate_hz


Rate = Annotated[
    float | None,
    typer.Option(
        parser=_rate,
        metavar="HZ",
        help="Rate of a topic that is created: 50, or a fraction such as 1/3600 (hourly).",
        show_default="8000; of a table, what its times tell",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C",
        help="Columns of .csv, .tsv and .npz files, in the channels' order: names, or numbers from 0.",
        show_default="all but the times",
    ),
]


def read_columns(text: str | None) -> tuple[str, ...] | None:
    """The names in a list; one that holds a comma stands in double quotes.

    >>> read_columns('a, "b,c"')
    ('a', 'b,c')
    """
    import csv

    if text is None:
        return None
    return tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []))


def read_given(path: Path | None) -> Array | None:
    """The values of a .npy file, flattened. Raises ConfigError: no such file, no numbers, or not finite."""
    import zipfile

    import numpy as np

    from pipeline.errors import ConfigError

    if path is None:
        return None
    try:
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"--given {path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile):
        # numpy takes whatever it does not know for a pickle, and its message says how to load one unsafely.
        raise ConfigError(f"--given {path}: cannot be read as a .npy file of numbers; {_WRITE_ONE}") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        raise ConfigError(f"--given {path}: expected one array of floats; {_WRITE_ONE}")
    flat = values.astype(np.float32).reshape(-1)
    if not np.isfinite(flat).all():
        raise ConfigError(f"--given {path}: holds NaN or infinity")
    return flat
