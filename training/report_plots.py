"""Pictures of the report, from committed figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

History = list[dict[str, float]]

COLOURS = ("#24598f", "#c0632c", "#2a7f62", "#8a4f9e", "#8c6d1f", "#b03a5b", "#4a8fa8", "#6b6b6b", "#5b7d2e")
MOST_COUNTED = 14
"""More classes than that have no room for their counts."""


def curves(histories: Mapping[str, History]) -> Figure:
    """Losses on the left (learnt from: thin; validation: thick), on the right what of the histories are shares."""
    first = next(iter(histories.values()))[-1]
    shares = [
        name for name in first
        if name not in ("pass", "seconds") and not name.endswith(("loss", "error")) and _share(histories, name)
    ]  # fmt: skip
    figure = Figure(figsize=(9.2, 3.1), layout="constrained")
    axes = list(figure.subplots(1, 2 if shares else 1, squeeze=False)[0])
    for n, (label, history) in enumerate(histories.items()):
        colour, passes = COLOURS[n % len(COLOURS)], [row["pass"] for row in history]
        for name, width in (("train_loss", 0.8), ("loss", 1.7)):
            told = label if name == "loss" or not all("loss" in row for row in history) else None
            if all(name in row for row in history):
                axes[0].plot(passes, [row[name] for row in history], color=colour, linewidth=width, label=told)
        for share, style in zip(shares, ("-", "--", ":", "-."), strict=False):
            values = [100 * row[share] for row in history if share in row]
            axes[1].plot(passes[-len(values) :], values, style, color=colour, linewidth=1.4)
    positive = [row[k] for h in histories.values() for row in h for k in ("train_loss", "loss") if row.get(k, 0) > 0]
    if positive and max(positive) > 30 * min(positive):
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_formatter(NullFormatter())
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set(xlabel="passes", ylabel="loss: thin learnt from, thick validation")
    if len(histories) > 1:
        axes[0].legend(frameon=False, fontsize=7)
    if shares:
        axes[1].set(xlabel="passes", ylabel="%, validation")
        for share, style in zip(shares, ("-", "--", ":", "-."), strict=False):
            axes[1].plot([], [], style, color="black", label=share.replace("_", " "))
        axes[1].legend(frameon=False, fontsize=7)
    return figure


def _share(histories: Mapping[str, History], name: str) -> bool:
    return all(0 <= row.get(name, 0.5) <= 1 for history in histories.values() for row in history)


def confusion(counts: NDArray[Any], names: Sequence[str], rows: str = "truth", columns: str = "said") -> Figure:
    """`[C, C]` or `[C, C + 1]` counts, shaded by the row's share; the last column of the wider one is for nothing."""
    height, width = counts.shape
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 0.42 if width <= MOST_COUNTED else 0.2
    figure = Figure(figsize=(side * width + 2.6, side * height + 1.8), layout="constrained")
    axis = figure.subplots()
    # Gamma, so that one clip of a hundred that went astray can still be seen.
    axis.imshow(shares**0.5, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count and width <= MOST_COUNTED:
            colour = "white" if shares[row, column] > 0.3 else "black"
            axis.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=6)
    told = [*names[:height], *["nothing"] * (width - height)]
    small = 8 if width <= MOST_COUNTED else 6
    axis.set_xticks(range(width), told[:width], rotation=90, fontsize=small)
    axis.set_yticks(range(height), told[:height], fontsize=small)
    axis.set(xlabel=columns, ylabel=rows)
    return figure


def detector(folds: Mapping[str, Any]) -> Figure:
    """Detected words over false alarms an hour, a line a left-out speaker."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axis = figure.subplots()
    for n, (name, result) in enumerate(folds.items()):
        points = sorted(result["detector"], key=lambda point: float(point["threshold"]))
        alarms = [point["false_alarms_an_hour"] for point in points]
        axis.plot(alarms, [100 * p["detected"] for p in points], ".-", color=COLOURS[n % len(COLOURS)], label=name)
    axis.set(xscale="symlog", xlabel="false alarms an hour of foreign speech", ylabel="detected in 10 dB noise [%]")
    axis.legend(frameon=False, fontsize=8)
    return figure


def by_hour(errors: Sequence[float]) -> Figure:
    """Mean squared error of a forecast by how far it looks ahead."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(np.arange(1, len(errors) + 1), errors, color=COLOURS[0])
    axis.set(xlabel="hours ahead", ylabel="mean squared error", ylim=(0, None))
    return figure


def bars(values: Mapping[str, float], label: str) -> Figure:
    """One horizontal bar a name, in the given order."""
    figure = Figure(figsize=(7.5, 0.3 * len(values) + 0.8), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(values))[::-1]
    drawn = axis.barh(places, list(values.values()), color=COLOURS[0], height=0.62)
    axis.bar_label(drawn, fmt="%.0f", padding=3, fontsize=8)
    axis.set_yticks(places, list(values), fontsize=8)
    axis.set(xlabel=label, xlim=(0, 1.1 * max(values.values())))
    return figure
