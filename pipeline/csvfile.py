"""CSV files to numbers: the separator, the header and the times are found out, the numbers are numpy's work.

A file is read twice at most: once by numpy, and again, cell by cell, only to say which line a fault is in.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.component import Array
from pipeline.errors import TableError

_TIMES = {"time", "timestamp", "timestamps", "date", "datetime", "date_time", "ts"}
_MISSING = {"", "nan", "na", "n/a", "null", "none", "-", "?"}
_SHOWN = 20  # columns named in one message
_LONGEST = 80  # characters of a name


@dataclass(frozen=True)
class Table:
    """Rows of numbers.

    values: float64 `[N, C]`, all finite. columns: their C names; numbers from 0 where the file names none.
    step_s: the median time from one row to the next, by the file's own times; None where it has none (or numbers,
        of which nobody knows the unit). uneven: rows that do not follow the one before by `step_s`.
    """

    values: Array
    columns: tuple[str, ...]
    step_s: float | None = None
    uneven: int = 0


class _Look(NamedTuple):
    """What the first rows tell: `names` are numbers from 0 where there is no header; `times` is a column's place."""

    separator: str
    header: bool
    names: tuple[str, ...]
    times: int | None


def read_csv(path: Path, columns: tuple[str, ...] | None = None) -> Table:
    """A CSV file as numbers: separated by semicolons, tabs or commas, with a header or without one.

    The first column of times (ISO 8601, or any numbers under a name like `timestamp`) is left out.

    Args:
        columns: only these, in this order: names of the header, or numbers from 0.
    Raises:
        TableError: not there, no table of numbers, a value that is missing or not finite (by line and column), no such
            column.
    """
    try:
        look = _look(path)
        wanted = [n for n in range(len(look.names)) if n != look.times]
        if columns is not None:
            wanted = pick(str(path), look.names, columns)
        if not wanted:
            raise TableError(f"{path}: holds times and nothing else")
        values, stamps = _numbers(path, look, wanted)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read as CSV ({error})") from None
    return Table(values, tuple(look.names[n] for n in wanted), *_steps(stamps))


def pick(source: str, names: tuple[str, ...], asked: tuple[str, ...]) -> list[int]:
    """Places of the columns asked for. Raises TableError that tells which there are."""
    found = []
    for name in asked:
        if names.count(name) != 1:
            there = "twice in it" if name in names else "not in it"
            raise TableError(f"{source}: column {name!r} is {there}; there are {told(names)}")
        found.append(names.index(name))
    return found


def told(names: tuple[str, ...]) -> str:
    """Columns, for a message.

    >>> told(("a", "b"))
    '2 columns (a, b)'
    """
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} column{'s' * (len(names) != 1)} ({', '.join(map(_shown, names[:_SHOWN]))}{more})"


def _shown(name: str) -> str:
    """A name from a file, which could hold what steers a terminal: as it is only if all of it can be printed."""
    return name[:_LONGEST] if name.isprintable() else repr(name[:_LONGEST])


def _rows(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not empty."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        for row in reader:
            if row:
                yield reader.line_num, [cell.strip() for cell in row]


def _look(path: Path) -> _Look:
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = next((line for line in file if line.strip()), "")
    separator = next((mark for mark in ";\t" if mark in line), ",")
    rows = [cells for _, cells in islice(_rows(path, separator), 2)]
    if not rows:
        raise TableError(f"{path}: is empty; expected rows of numbers")
    header = all(_number(cell) is None and _time(cell) is None for cell in rows[0])
    if header and len(rows) < 2:
        raise TableError(f"{path}: a header and no rows of numbers ({', '.join(map(_shown, rows[0][:_SHOWN]))})")
    first = rows[-1] if header else rows[0]
    if header and len(rows[0]) != len(first):
        raise TableError(f"{path}: {len(rows[0])} names in the header, but {len(first)} cells in the row below it")
    names = tuple(rows[0]) if header else tuple(map(str, range(len(first))))
    times = (
        n
        for n, cell in enumerate(first)
        if (_number(cell) is None and _time(cell) is not None) or names[n].lower() in _TIMES
    )
    return _Look(separator, header, names, next(times, None))


def _numbers(path: Path, look: _Look, wanted: list[int]) -> tuple[Array, Array | None]:
    """(values `[N, C]`, times `[N]` in seconds where the file tells them). Raises TableError by line and column."""
    width = len(look.names)
    converters: dict[int | str, Callable[[str], float]] = {
        n: _seconds if n == look.times else _nothing for n in range(width) if n not in wanted
    }
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = (line for line in file if line.strip())
        if look.header:
            next(lines)
        try:
            table = np.loadtxt(
                lines, delimiter=look.separator, comments=None, quotechar='"', ndmin=2, converters=converters
            )
        except (ValueError, TypeError):  # what it says counts rows, not lines
            table = np.empty((0, width))
    if table.shape[1] != width or not len(table) or not np.isfinite(table[:, wanted]).all():
        raise TableError(_fault(path, look, wanted))
    stamps = table[:, look.times] if look.times in converters else None
    return table[:, wanted], stamps if stamps is not None and np.isfinite(stamps).all() else None


def _fault(path: Path, look: _Look, wanted: list[int]) -> str:
    """The first fault, where it is and what to do."""
    rows = _rows(path, look.separator)
    if look.header:
        next(rows)
    for line, cells in rows:
        if len(cells) != len(look.names):
            return f"{path}: line {line} has {len(cells)} cells, expected {len(look.names)}, as in the first row"
        for n in wanted:
            number, where = _number(cells[n]), f"{path}: line {line}, column {look.names[n]!r}"
            if cells[n].lower() in _MISSING:
                return f"{where}: the value is missing; fill it in, drop the row, or choose other columns (--columns)"
            if number is None:
                comma = " (a decimal comma? write a point)" if _number(cells[n].replace(",", ".")) is not None else ""
                return f"{where}: {cells[n][:80]!r} is no number{comma}; choose other columns with --columns"
            if not np.isfinite(number):
                return f"{where}: {cells[n][:80]!r} is not finite"
    return f"{path}: no table of numbers"


def _steps(stamps: Array | None) -> tuple[float | None, int]:
    if stamps is None or len(stamps) < 2:
        return None, 0
    steps = np.diff(stamps)
    step_s = round(float(np.median(steps)), 6)  # seconds since 1970 have no finer digits
    return step_s, int((np.abs(steps - step_s) > 0.01 * abs(step_s)).sum())


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _time(cell: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 time; one without a zone counts as UTC, so that no hour is there twice."""
    try:
        when = datetime.fromisoformat(cell)
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _seconds(cell: str) -> float:
    when = None if _number(cell) is not None else _time(cell.strip())
    return float("nan") if when is None else when


def _nothing(_: str) -> float:
    return 0.0
