"""Pictures of the generated tasks (`training.memory`): the moving average, the adding problem, copy memory."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.figure import Figure

from training.recipes import adding, copying

COLOURS = {"rnn": "#8c8c8c", "gru": "#2a7f62", "lstm": "#2b5d9b"}
CARRIES, BEGINS = "#2b5d9b", "#c0632c"
FADED = 1e-7
"""Gradients are drawn down to this share of the largest one."""

Run = dict[str, Any]


def figures(task: str, found: list[Run]) -> dict[str, Figure]:
    """The pictures of a task by name; variants that are missing are left out."""
    if task == "moving_average":
        return {"unexplained": unexplained(found), "answers": answers(found)}
    learnt = {"adding": adding_curves, "copying": copying_curves}[task](found)
    return {"curves": learnt, "reach": reach(found)}


def unexplained(found: list[Run]) -> Figure:
    """What is left of the target's variance, by the length of a segment; the stateless nets' limit as a line."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axis = figure.subplots()
    lengths = sorted({run["recipe"]["lahead"] for run in found})
    places = {n: place for place, n in enumerate(lengths)}
    for run in found:
        carry, lahead = run["recipe"]["carry"], run["recipe"]["lahead"]
        axis.bar(
            places[lahead] + (-0.19 if carry else 0.19), run["history"][-1]["unexplained"], 0.34,
            color=CARRIES if carry else BEGINS,
        )  # fmt: skip
    tsteps = found[0]["recipe"]["tsteps"]
    for lahead, place in places.items():
        least = max(0.0, 1 - lahead / tsteps)
        axis.hlines(least, place, place + 0.38, color="black", linewidth=1.2, linestyle="--")
    for label, colour in (("carries its state", CARRIES), ("begins every segment with zeros", BEGINS)):
        axis.bar(0, 0, color=colour, label=label)
    axis.hlines([], 0, 0, color="black", linestyle="--", linewidth=1.2, label="the least it can have, seeing no more")
    axis.set_xticks(range(len(lengths)), [f"{n}" for n in lengths])
    axis.set(xlabel="lahead: samples seen at a time in training", ylabel="share of the variance unexplained")
    axis.set(title=f"moving average of tsteps = {tsteps} samples", ylim=(0, 1))
    axis.legend(frameon=False)
    return figure


def answers(found: list[Run]) -> Figure:
    """What the two nets of the shortest segments say, over the truth."""
    shortest = min(run["recipe"]["lahead"] for run in found)
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    pair = [run for run in found if run["recipe"]["lahead"] == shortest]
    for axis, run in zip(np.atleast_1d(figure.subplots(len(pair), 1, sharex=True)), pair, strict=True):
        carry = run["recipe"]["carry"]
        axis.plot(run["wanted"], color="black", linewidth=1, label="right")
        axis.plot(run["said"], color=CARRIES if carry else BEGINS, linewidth=1.4, label="said")
        axis.set_title(f"lahead = {shortest}, " + ("state carried" if carry else "state zero"), loc="left", fontsize=10)
        axis.legend(frameon=False, ncols=2, fontsize=8, loc="upper right")
        axis.set(ylabel="mean", ylim=(-0.9, 0.9))
    axis.set(xlabel="samples")
    return figure


def adding_curves(found: list[Run]) -> Figure:
    """Mean squared error over batches: a column for each T, clipped above, not clipped below."""
    lengths = sorted({run["recipe"]["frames"] for run in found})
    clips = sorted({run["recipe"]["clip_norm"] for run in found}, reverse=True)
    figure = Figure(figsize=(9.5, 2.5 * len(clips) + 0.4), layout="constrained")
    axes = figure.subplots(len(clips), len(lengths), sharex=True, sharey=True, squeeze=False)
    for row, clip in zip(axes, clips, strict=True):
        for axis, frames in zip(row, lengths, strict=True):
            for run in found:
                recipe = run["recipe"]
                if (recipe["frames"], recipe["clip_norm"]) == (frames, clip):
                    batches = [one["pass"] * recipe["batches"] for one in run["history"]]
                    losses = [one["loss"] for one in run["history"]]
                    axis.semilogy(batches, losses, color=COLOURS[recipe["cell"]], label=recipe["cell"])
            axis.axhline(adding.BASELINE, color="black", linewidth=0.7, linestyle=":")
            axis.axhline(adding.SOLVED, color="black", linewidth=0.7, linestyle="--")
            told = f"clipped at {clip:g}" if clip else "not clipped"
            axis.set_title(f"T = {frames}, {told}", fontsize=10)
        row[0].set_ylabel("mean squared error")
    for axis in axes[-1]:
        axis.set_xlabel("batches")
    axes[0, -1].legend(frameon=False, fontsize=8)
    return figure


def copying_curves(found: list[Run]) -> Figure:
    """Symbols said right, over batches."""
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axis = figure.subplots()
    for run in found:
        batches = [one["pass"] * run["recipe"]["batches"] for one in run["history"]]
        right = [100 * one["right"] for one in run["history"]]
        axis.plot(batches, right, color=COLOURS[run["recipe"]["cell"]], label=run["recipe"]["cell"])
    axis.axhline(100 / copying.SYMBOLS, color="black", linewidth=0.7, linestyle=":", label="guessing")
    recipe = found[0]["recipe"]
    axis.set(xlabel="batches", ylabel="symbols right [%]", ylim=(0, 101))
    axis.set_title(f"{recipe['length']} symbols of {copying.SYMBOLS}, said again after {recipe['delay']} frames")
    axis.legend(frameon=False)
    return figure


def reach(found: list[Run]) -> Figure:
    """How far the last answer's gradient reaches back: one line a net, of the longest clipped ones."""
    key = "frames" if "frames" in found[0]["recipe"] else "delay"
    longest = max(run["recipe"][key] for run in found)
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axis = figure.subplots()
    for run in found:
        recipe = run["recipe"]
        if recipe[key] == longest and recipe["clip_norm"]:
            shares = np.array(run["reach"]) / max(run["reach"])
            back, cell = np.arange(len(shares))[::-1], recipe["cell"]
            axis.semilogy(back, np.maximum(shares, FADED), color=COLOURS[cell], label=cell)
    axis.set(xlabel="frames before the last answer", ylabel="gradient, of its largest", ylim=(FADED, 2))
    axis.invert_xaxis()
    axis.legend(frameon=False)
    return figure
