"""Pictures of a run: learning curves, a confusion matrix, a detector's curve. All PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from training.recipes.digits import DIGITS


def plot_curves(history: list[dict[str, float]], path: Path) -> None:
    """Loss, and accuracy of the listeners, over passes."""
    figure, left = plt.subplots(figsize=(7, 4))
    passes = [row["pass"] for row in history]
    left.plot(passes, [row["loss"] for row in history], color="tab:blue", label="loss a frame")
    left.set(xlabel="passes", ylabel="loss [nats a frame]", ylim=(0, None))
    right = left.twinx()
    for name, colour in (("events", "tab:orange"), ("pooled", "tab:green")):
        if all(name in row for row in history):
            right.plot(passes, [100 * row[name] for row in history], color=colour, label=f"left-out speaker, {name}")
    right.set(ylabel="accuracy [%]", ylim=(50, 100))
    figure.legend(loc="center right", bbox_to_anchor=(0.88, 0.5))
    _save(figure, path)


def plot_confusion(confusion: NDArray[np.int64], path: Path, title: str) -> None:
    """`[10, 11]` counts: spoken in rows, heard in columns, the last one for no word."""
    figure, axis = plt.subplots(figsize=(6.4, 6))
    axis.imshow(confusion, cmap="Blues")
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            dark = count > confusion.max() / 2
            axis.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black", size=8)
    axis.set_xticks(range(11), [*DIGITS, "none"], rotation=60)
    axis.set_yticks(range(10), DIGITS)
    axis.set(xlabel="heard", ylabel="spoken", title=title)
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
