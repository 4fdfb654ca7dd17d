"""The Numenta Anomaly Benchmark's scoring, standard profile, as published: Lavin and Ahmad, Evaluating Real-Time
Anomaly Detection Algorithms, 2015 (arXiv 1510.03336), section III.

A detection is a row whose score reaches the threshold. Rows of a series' beginning (15 % of it, at most 750) are not
looked at. The best detection within a labelled window counts for it: with sigma(y) = 2 / (1 + exp(5 y)) - 1, at most
sigma(-1) / sigma(-1) = 1 at its first row, near 0 at its last; a window without one costs 1. Every detection outside
of windows costs 0.11 * sigma(y) < 0, y being its distance from the last row of the window before, in lengths of that
window, so a little less just behind a window; 0.11 where none came before or y reaches 3. One threshold serves all
series: the one with the highest score, as NAB's optimiser chooses it. That choice looks at the labels; it is part of
the score, and no detector sees it. Reported is 100 * (score - null) / (perfect - null), where null is a detector that
never speaks and perfect one that speaks at the first row of every window alone.

Where the paper leaves something open, this follows what its authors run: a window of n rows is left at -1/n, not 0,
and the distance behind it is measured in n - 1 rows.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Window = tuple[int, int]
"""Its first and last row, both within it."""

TP_WEIGHT, FP_WEIGHT, FN_WEIGHT = 1.0, 0.11, 1.0
"""The standard profile."""

PROBATION_SHARE, PROBATION_ROWS = 0.15, 5000
OUTSIDE, UNSEEN = -1, -2


@dataclass(frozen=True)
class Series:
    """One file: `group/file.csv`, its values `[T]`, and its windows in order of time."""

    name: str
    values: NDArray[np.float32]
    windows: tuple[Window, ...]

    @property
    def group(self) -> str:
        return self.name.split("/", maxsplit=1)[0]


@dataclass(frozen=True)
class Outcome:
    """`score` is 100 for a perfect detector and 0 for a silent one; `threshold` the one it was reached with (above
    all scores: infinity). gain: the same before normalising, so that those of groups add up; a perfect one's is 2 for a
    window. found: windows with a detection, of `windows`. false: detections outside."""

    score: float
    gain: float
    threshold: float
    found: int
    windows: int
    false: int


def read(folder: Path) -> list[Series]:
    """All series below `folder` (NAB's own: `data/<group>/<file>.csv`, `combined_windows.json`), sorted by name.

    Raises FileNotFoundError, KeyError, ValueError: it is not laid out like that.
    """
    windows = json.loads((folder / "combined_windows.json").read_text())
    found = []
    for path in sorted((folder / "data").glob("*/*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        times = [datetime.fromisoformat(row["timestamp"]) for row in rows]
        name = f"{path.parent.name}/{path.name}"
        limits = [[times.index(datetime.fromisoformat(limit)) for limit in pair] for pair in windows[name]]
        values = np.array([float(row["value"]) for row in rows], np.float32)
        found.append(Series(name, values, tuple((first, last) for first, last in sorted(limits))))
    return found


def sigma(position: float | Scores) -> Scores:
    """The scaled sigmoid: 1 far before a window's end, 0 at it, -1 far behind.

    >>> float(sigma(0.0)), round(float(sigma(-1.0)), 5)
    (0.0, 0.98661)
    """
    return np.asarray(2.0 / (1.0 + np.exp(5.0 * np.minimum(position, 3.0))) - 1.0)


def worth(rows: int, windows: Sequence[Window]) -> tuple[Scores, NDArray[np.int64]]:
    """What a detection at each row is worth, and which window it lies in (`OUTSIDE`, or `UNSEEN` in probation)."""
    value = np.full(rows, -FP_WEIGHT)
    where = np.full(rows, OUTSIDE)
    for number, (first, last) in enumerate(windows):
        length = last - first + 1
        at = np.arange(first, last + 1)
        value[at] = TP_WEIGHT * sigma((at - last - 1) / length) / sigma(-1.0)
        where[at] = number
        behind = np.arange(last + 1, rows)  # up to the next window, which overwrites it
        past = (behind - last) / max(length - 1, 1)
        value[behind] = FP_WEIGHT * np.where(past < 3.0, sigma(past), -1.0)
    where[: min(int(PROBATION_SHARE * rows), int(PROBATION_SHARE * PROBATION_ROWS))] = UNSEEN
    return value, where


def score(series: Sequence[Series], scores: Mapping[str, Scores], threshold: float | None = None) -> Outcome:
    """Score a detector.

    Args:
        scores: of each series by name, `[T]`; a row's must be known when its value is.
        threshold: None: the best one for all of `series` together.
    Raises:
        ValueError: a series without scores, or with another number of them than it has rows.
    """
    height, change, hit, wrong, windows = [], [], [], [], 0
    for one in series:
        given = np.asarray(scores.get(one.name, ()), np.float64)
        if given.shape != one.values.shape or np.isnan(given).any():
            raise ValueError(f"{one.name}: scores {list(given.shape)}, expected {list(one.values.shape)} without NaN")
        value, where = worth(len(given), one.windows)
        windows += len(one.windows)
        outside = where == OUTSIDE
        height.append(given[outside])
        change.append(value[outside])
        hit.append(np.zeros(outside.sum(), np.int64))
        wrong.append(np.ones(outside.sum(), np.int64))
        for number in range(len(one.windows)):
            rows = np.flatnonzero(where == number)
            rows = rows[np.argsort(-given[rows], kind="stable")]
            if not rows.size:  # it lies in probation: nobody can find it
                continue
            best = np.maximum.accumulate(value[rows])  # the lower the threshold, the earlier the first detection
            height.append(given[rows])
            change.append(np.diff(best, prepend=-FN_WEIGHT))
            hit.append((np.arange(rows.size) == 0).astype(np.int64))
            wrong.append(np.zeros(rows.size, np.int64))
    level = np.concatenate([[np.inf], *height])
    order = np.argsort(-level, kind="stable")
    level = level[order]
    total = np.cumsum(np.concatenate([[0.0], *change])[order]) - FN_WEIGHT * windows
    told = np.cumsum(np.concatenate([[0], *hit])[order])
    false = np.cumsum(np.concatenate([[0], *wrong])[order])
    last = np.flatnonzero(np.append(level[1:] != level[:-1], True))  # rows of equal scores come together
    if threshold is None:
        best_at = last[np.argmax(total[last])]
    else:
        best_at = last[np.searchsorted(-level[last], -threshold, side="right") - 1]
    gain = float(total[best_at]) + FN_WEIGHT * windows
    perfect = (TP_WEIGHT + FN_WEIGHT) * windows
    at = float(level[best_at]) if threshold is None else threshold
    reached = 100.0 * gain / perfect if windows else 0.0
    return Outcome(reached, gain, at, int(told[best_at]), windows, int(false[best_at]))
