"""Pictures of a run: learning curves, a confusion matrix, a detector's curve. All PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def plot_curves(history: list[dict[str, float]], path: Path) -> None:
    """Losses over passes; on the right what of the history is a share, in percent."""
    figure, left = plt.subplots(figsize=(7, 4))
    passes = [row["pass"] for row in history]
    names = [name for name in history[-1] if name not in ("pass", "seconds") and all(name in row for row in history)]
    shares = [n for n in names if not n.endswith("loss") and all(0 <= row[n] <= 1 for row in history)]
    for name in (n for n in names if n.endswith("loss")):
        told = "validation loss" if name == "loss" else name.replace("_", " ")
        left.plot(passes, [row[name] for row in history], label=told)
    left.set(xlabel="passes", ylabel="loss", ylim=(0, None))
    if shares:
        right = left.twinx()
        for n, name in enumerate(shares):
            right.plot(passes, [100 * row[name] for row in history], color=f"C{n + 2}", linestyle="--", label=name)
        right.set(ylabel="%", ylim=(None, 100))
    figure.legend(loc="center right", bbox_to_anchor=(0.88, 0.5))
    _save(figure, path)


def plot_confusion(confusion: NDArray[np.int64], path: Path, title: str, names: Sequence[str]) -> None:
    """`[C, C]` or `[C, C + 1]` counts: said in rows, heard in columns, the last one more for none."""
    rows, columns = confusion.shape
    side = max(6.0, 0.26 * columns)
    figure, axis = plt.subplots(figsize=(side + 0.4, side))
    axis.imshow(confusion, cmap="Blues")
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            dark = count > confusion.max() / 2
            axis.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black", size=7)
    axis.set_xticks(range(columns), [*names, "none"][:columns], rotation=90)
    axis.set_yticks(range(rows), names)
    axis.set(xlabel="heard", ylabel="said", title=title)
    _save(figure, path)


def plot_detector(curves: dict[str, list[dict[str, float]]], path: Path, chosen: float) -> None:
    """Detected words against false alarms an hour, one line a left-out speaker; the shipped threshold marked."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for name, points in curves.items():
        alarms = [point["false_alarms_an_hour"] for point in points]
        found = [100 * point["detected"] for point in points]
        (line,) = axis.plot(alarms, found, marker=".", label=name)
        at = min(range(len(points)), key=lambda n: abs(points[n]["threshold"] - chosen))
        axis.plot(alarms[at], found[at], marker="o", color=line.get_color(), markersize=9, fillstyle="none")
    axis.axhline(85, color="grey", linewidth=0.8, linestyle="--")
    axis.axvline(10, color="grey", linewidth=0.8, linestyle="--")
    axis.set(xlabel="false alarms an hour, Arabic speech played on end", ylabel="digits detected in 10 dB noise [%]")
    axis.set(title=f"rings: threshold {chosen:g}; dashed: the bars", xscale="symlog", xlim=(0, None), ylim=(50, 100))
    axis.legend()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
