"""The Skoltech Anomaly Benchmark (Katser and Kozitsin, 2020): eight sensors of a water loop, one value a second.

Its outlier task: the first 400 rows of each file are the model's to learn what is normal, a row is an outlier or not,
and F1 is taken over the rows of all files that hold anomalies, those first 400 included. Its notebooks set a threshold
at 4/3 of the 0.99 quantile of what the model made of the 400 rows.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NORMAL_ROWS = 400
SENSORS = 8


@dataclass(frozen=True)
class File:
    """One experiment: `group/file.csv`, values `[T, 8]`, and which rows are labelled anomalous `[T]`."""

    name: str
    values: NDArray[np.float32]
    anomaly: NDArray[np.bool_]

    @property
    def group(self) -> str:
        return self.name.split("/", maxsplit=1)[0]


@dataclass(frozen=True)
class Score:
    """f1; false_alarms: share of the normal rows that were marked; missed: share of the anomalous that were not."""

    f1: float
    false_alarms: float
    missed: float

    def rounded(self) -> dict[str, float]:
        return {"f1": round(self.f1, 4), "false_alarms": round(self.false_alarms, 4), "missed": round(self.missed, 4)}


def read(folder: Path) -> tuple[list[File], NDArray[np.float32]]:
    """The experiments sorted by name, and the one recording in which nothing is wrong, `[T, 8]`."""
    files, free = [], np.empty((0, SENSORS), np.float32)
    for path in sorted((folder / "data").glob("*/*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.reader(file, delimiter=";"))[1:]
        values = np.array([[float(cell) for cell in row[1 : 1 + SENSORS]] for row in rows], np.float32)
        if path.parent.name == "anomaly-free":
            free = values
        else:
            marked = np.array([float(row[1 + SENSORS]) > 0 for row in rows])
            files.append(File(f"{path.parent.name}/{path.name}", values, marked))
    return files, free


def limit(scores: NDArray[np.float64]) -> float:
    """The notebooks' threshold, of the scores of the rows that are normal."""
    return float(np.quantile(scores, 0.99) * 4 / 3)


def f1(truth: Mapping[str, NDArray[np.bool_]], found: Mapping[str, NDArray[np.bool_]]) -> Score:
    """Over the rows of all files together.

    >>> f1({"a": np.array([False, True, True, True])}, {"a": np.array([True, True, True, False])})
    Score(f1=0.6666666666666666, false_alarms=1.0, missed=0.3333333333333333)
    """
    right = np.concatenate([truth[name] for name in truth])
    told = np.concatenate([found[name] for name in truth])
    hits, wrong, missed = (int(np.sum(part)) for part in (right & told, ~right & told, right & ~told))
    normal = int(np.sum(~right))
    return Score(
        2 * hits / max(2 * hits + wrong + missed, 1), wrong / max(normal, 1), missed / max(hits + missed, 1)
    )  # fmt: skip
