"""The picture of `training.inspect`: everything on one axis of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib.figure import Figure

from pipeline.manifest import Manifest
from training.observed import Observed

MOST_BORDERS = 400
"""More chunk borders than that would be a grey wall: then none are drawn, and the title says so."""

MOST_NAMED = 40
"""Labels of events; more (the steps of a forecast) are no picture."""

MOST_POINTS = 4000
FADED = 1e-8
GATES = {
    "LSTM": (("input", "input gate i"), ("forget", "forget gate f"), ("output", "output gate o")),
    "GRU": (("reset", "reset gate r"), ("update", "update gate z")),
    "RNN": (),
}
UNITS = (("days", 86_400.0), ("hours", 3_600.0), ("seconds", 1.0))
INK = "#1f3a5f"


@dataclass(frozen=True)
class View:
    """What to draw: the units of one layer; chunk borders every so many samples."""

    observed: Observed
    manifest: Manifest
    chunk_samples: int
    layer: int
    units: list[int]
    title: str

    @property
    def seconds(self) -> float:
        """The recording's length."""
        return len(self.observed.signal) / self.observed.rate_hz

    @property
    def scale(self) -> tuple[str, float]:
        """The unit of the axis of time, and its seconds: days from three of them on, hours likewise."""
        return next((unit for unit in UNITS if self.seconds >= 3 * unit[1]), UNITS[-1])


Panel = tuple[float, Callable[[Any], None]]
"""Its height, and what draws it on an axis."""


def draw(view: View) -> Figure:
    """All pictures, one above the other."""
    seen, (unit, unit_s) = view.observed, view.scale
    figure = Figure(layout="constrained")
    panels = list(_panels(view, figure, view.manifest.hop_samples / (seen.rate_hz * unit_s)))
    heights = [height for height, _ in panels]
    figure.set_size_inches(13, 1.55 * sum(heights) + 0.4)
    axes = [row[0] for row in figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)]
    rate = seen.rate_hz * unit_s
    borders = np.arange(view.chunk_samples, len(seen.signal), view.chunk_samples) / rate
    for axis, (_, draws) in zip(axes, panels, strict=True):
        draws(axis)
        axis.set_xlim(0, view.seconds / unit_s)
        if len(borders) <= MOST_BORDERS:
            axis.vlines(borders, 0, 1, transform=axis.get_xaxis_transform(), color="black", linewidth=0.4, alpha=0.35)
    drawn = "drawn" if len(borders) <= MOST_BORDERS else "too many to draw"
    length_s = view.chunk_samples / seen.rate_hz
    length = f"{length_s:,.10g} s" if length_s >= 1 else f"{1000 * length_s:g} ms"
    what = f"layer {view.layer}: {seen.layers[view.layer][0]}" if seen.layers else "no recurrent layer"
    figure.suptitle(f"{view.title}  (chunks of {length}, borders {drawn}; {what})", fontsize=11)
    axes[-1].set_xlabel(unit)
    return figure


def _panels(view: View, figure: Figure, frame: float) -> Iterator[Panel]:
    """From top to bottom; `frame` is the length of a frame on the axis of time."""
    seen = view.observed
    yield 1.2, lambda axis: _signal(axis, view)
    if seen.features.shape[1] > 8:
        low, high = (float(edge) for edge in np.percentile(seen.features, [2, 99.8]))
        yield 1.3, lambda axis: _image(axis, figure, seen.features, None, seen.kind, frame, "magma", (low, high))
    elif seen.layers:
        yield 1.3, lambda axis: _lines(axis, seen.features, None, seen.kind, frame)
    if seen.layers:
        kind, parts = seen.layers[view.layer]
        named = [f"{unit}" for unit in view.units]
        chosen = {name: part[:, view.units] for name, part in parts.items()}
        for name, title in GATES[kind]:
            yield 1.0, partial(_gate, figure=figure, values=chosen[name], names=named, title=title, frame=frame)
        if kind == "LSTM":
            yield 1.3, lambda axis: _lines(axis, chosen["cell"], named, "cell state c", frame)
        hidden = chosen["hidden"]
        yield 1.2, lambda axis: _image(axis, figure, hidden, named, "hidden state h", frame, "RdBu_r", (-1.0, 1.0))
    yield 1.4, lambda axis: _scores(axis, view, frame)
    rows = sorted({event.label for event in seen.events})
    if 0 < len(rows) <= MOST_NAMED:
        yield 0.4 + 0.11 * len(rows), lambda axis: _events(axis, view, rows)
    if seen.reach is not None:
        reach = seen.reach
        yield 1.0, lambda axis: _reach(axis, reach, seen.answer, frame)


def _gate(axis: Any, figure: Figure, values: NDArray[Any], names: list[str], title: str, frame: float) -> None:
    _image(axis, figure, values, names, title, frame, "viridis", (0.0, 1.0))


def _signal(axis: Any, view: View) -> None:
    """The signal, thinned to its extremes (several sensors: each by its own deviation)."""
    signal, unit_s = view.observed.signal, view.scale[1]
    step = max(1, len(signal) // MOST_POINTS)
    cut = signal[: len(signal) // step * step].reshape(-1, step, signal.shape[1])
    t = np.arange(len(cut)) * step / (view.observed.rate_hz * unit_s)
    if signal.shape[1] > 1:
        means = cut.mean(axis=1)
        axis.plot(t, (means - means.mean(axis=0)) / np.maximum(means.std(axis=0), 1e-9), linewidth=0.6)
        axis.set_ylabel("sensors, each by\nits own deviation")
    else:
        axis.fill_between(t, cut.min(axis=1)[:, 0], cut.max(axis=1)[:, 0], color=INK, linewidth=0.5)
        axis.set_ylabel("signal")


def _events(axis: Any, view: View, rows: list[str]) -> None:
    """A row a label; what lasts no time (the start of something) is a tick."""
    unit_s, seen = view.scale[1], view.observed
    least = view.seconds / unit_s / 1000
    for row, label in enumerate(rows):
        spans = [
            (e.start_s / unit_s, max((e.end_s - e.start_s) / unit_s, least)) for e in seen.events if e.label == label
        ]
        axis.broken_barh(spans, (row - 0.4, 0.8), facecolors=f"C{row % 10}", linewidth=0)
    axis.set_yticks(range(len(rows)), rows, fontsize=7)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_ylabel("events")


def _image(
    axis: Any, figure: Figure, values: NDArray[Any], names: list[str] | None, title: str, frame: float, colours: str,
    limits: tuple[float, float],
) -> None:  # fmt: skip
    """`[T, rows]`, the first row at the bottom."""
    frames, rows = values.shape
    drawn = axis.imshow(
        values.T, aspect="auto", origin="lower", interpolation="nearest", cmap=colours, vmin=limits[0], vmax=limits[1],
        extent=(0, frames * frame, -0.5, rows - 0.5),
    )  # fmt: skip
    figure.colorbar(drawn, ax=axis, pad=0.005, fraction=0.02)
    if names is not None and rows <= 16:
        axis.set_yticks(range(rows), names, fontsize=7)
    axis.set_ylabel(title)


def _lines(axis: Any, values: NDArray[Any], names: list[str] | None, title: str, frame: float) -> None:
    t = (np.arange(len(values)) + 1) * frame  # a frame is complete at its end
    axis.plot(t, values, linewidth=1, label=names)
    axis.axhline(0, color="black", linewidth=0.4)
    if names and len(names) <= 16:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
    axis.set_ylabel(title)


def _scores(axis: Any, view: View, frame: float) -> None:
    """The classes that ever mattered; the others would be lines at zero."""
    scores, labels = view.observed.scores, view.manifest.labels
    columns = np.argsort(scores.max(axis=0, initial=0.0))[::-1][:12]
    names = [labels[n] if labels else f"{n}" for n in columns]
    _lines(axis, scores[:, columns], names, "scores", frame)


def _reach(axis: Any, reach: NDArray[Any], answer: str, frame: float) -> None:
    """On a logarithmic axis, of the largest; what fell below `FADED` lies on it."""
    shares = np.maximum(reach / max(float(reach.max()), 1e-30), FADED)
    axis.semilogy((np.arange(len(shares)) + 1) * frame, shares, color=INK, linewidth=1.2)
    axis.set_ylim(FADED, 2)
    axis.set_ylabel("gradient of\nthe last answer")
    told = f"of {answer} at the end, to what was heard at each frame; of its largest"
    axis.text(0.005, 0.95, told, transform=axis.transAxes, fontsize=8, va="top")
