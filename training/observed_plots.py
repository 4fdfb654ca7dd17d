"""The picture of `training.inspect`: everything on one axis of time."""

from __future__ import annotations

from dataclasses import dataclass
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

MOST_POINTS = 4000
FADED = 1e-8
GATES = {
    "LSTM": (("input", "input gate i"), ("forget", "forget gate f"), ("output", "output gate o")),
    "GRU": (("reset", "reset gate r"), ("update", "update gate z (1: keep)")),
    "RNN": (),
}
INK, SPEECH = "#1f3a5f", "#e9b872"


@dataclass(frozen=True)
class View:
    """What to draw: the units of one layer; chunk borders every so many samples."""

    observed: Observed
    manifest: Manifest
    chunk_samples: int
    layer: int
    units: list[int]
    title: str


def draw(view: View) -> Figure:
    """All pictures, one above the other."""
    seen = view.observed
    kind, parts = seen.layers[view.layer] if seen.layers else ("", {})
    gates = GATES.get(kind, ())
    heights = [1.1, 1.3, *[1.0] * len(gates), *([1.3] if kind == "LSTM" else []), *([1.3] if kind else []), 1.5]
    heights += [1.0] if seen.reach is not None else []
    figure = Figure(figsize=(13, 1.55 * sum(heights)), layout="constrained")
    axes: list[Any] = list(np.atleast_1d(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)))
    ends = iter(axes)
    rate_hz, frame_s = view.manifest.input.sample_rate_hz, 1.0 / view.manifest.frame_rate_hz
    _waveform(next(ends), view, rate_hz)
    _features(next(ends), figure, view, frame_s)
    named = [f"{unit}" for unit in view.units]
    for name, title in gates:
        _image(next(ends), figure, parts[name][:, view.units], named, title, frame_s, "viridis", (0.0, 1.0))
    if kind == "LSTM":
        told = "cell state c" + (", the belt" if not gates else "")
        _lines(next(ends), parts["cell"][:, view.units], named, told, frame_s)
    if kind:
        hidden = parts["hidden"][:, view.units]
        _image(next(ends), figure, hidden, named, "hidden state h", frame_s, "RdBu_r", (-1.0, 1.0))
    _scores(next(ends), view, frame_s)
    if seen.reach is not None:
        _reach(next(ends), seen.reach, seen.answer, frame_s)
    seconds = len(seen.signal) / rate_hz
    borders = np.arange(view.chunk_samples, len(seen.signal), view.chunk_samples) / rate_hz
    for axis in axes:
        axis.set_xlim(0, seconds)
        if len(borders) <= MOST_BORDERS:
            axis.vlines(borders, 0, 1, transform=axis.get_xaxis_transform(), color="black", linewidth=0.4, alpha=0.35)
    drawn = "drawn" if len(borders) <= MOST_BORDERS else "too many to draw"
    chunk = f"chunks of {1000 * view.chunk_samples / rate_hz:g} ms, borders {drawn}"
    what = f"layer {view.layer}: {kind}" if kind else "no recurrent layer"
    figure.suptitle(f"{view.title}  ({chunk}; {what})", fontsize=11)
    axes[-1].set_xlabel("seconds")
    return figure


def _waveform(axis: Any, view: View, rate_hz: float) -> None:
    """The signal, thinned to its extremes; events shaded and named."""
    signal = view.observed.signal
    several = signal.shape[1] > 1
    step = max(1, len(signal) // MOST_POINTS)
    cut = signal[: len(signal) // step * step].reshape(-1, step, signal.shape[1])
    t = np.arange(len(cut)) * step / rate_hz
    if several:
        axis.plot(t, cut.mean(axis=1), linewidth=0.7)
    else:
        axis.fill_between(t, cut.min(axis=1)[:, 0], cut.max(axis=1)[:, 0], color=INK, linewidth=0.5)
    for n, event in enumerate(view.observed.events):
        axis.axvspan(event.start_s, event.end_s, color=SPEECH, alpha=0.45, linewidth=0)
        middle, height = (event.start_s + event.end_s) / 2, 0.98 - 0.13 * (n % 2)
        told = f"{event.label} {event.score:.2f}"
        axis.text(middle, height, told, transform=axis.get_xaxis_transform(), ha="center", va="top", fontsize=8)
    axis.set_ylabel("sensors" if several else "waveform")


def _features(axis: Any, figure: Figure, view: View, frame_s: float) -> None:
    features = view.observed.features
    if view.observed.log_mel or features.shape[1] > 8:
        low, high = np.percentile(features, [2, 99.8])
        name = "log-mel bands" if view.observed.log_mel else "frames"
        _image(axis, figure, features, None, name, frame_s, "magma", (float(low), float(high)))
    else:
        _lines(axis, features, [f"{n}" for n in range(features.shape[1])], "frames", frame_s)


def _image(
    axis: Any, figure: Figure, values: NDArray[Any], names: list[str] | None, title: str, frame_s: float, colours: str,
    limits: tuple[float, float],
) -> None:  # fmt: skip
    """`[T, rows]`, the first row at the bottom."""
    frames, rows = values.shape
    drawn = axis.imshow(
        values.T, aspect="auto", origin="lower", interpolation="nearest", cmap=colours, vmin=limits[0], vmax=limits[1],
        extent=(0, frames * frame_s, -0.5, rows - 0.5),
    )  # fmt: skip
    figure.colorbar(drawn, ax=axis, pad=0.005, fraction=0.02)
    if names is not None and rows <= 16:
        axis.set_yticks(range(rows), names, fontsize=7)
    axis.set_ylabel(title)


def _lines(axis: Any, values: NDArray[Any], names: list[str], title: str, frame_s: float) -> None:
    t = (np.arange(len(values)) + 1) * frame_s  # a frame is complete at its end
    for column, name in zip(values.T, names, strict=True):
        axis.plot(t, column, linewidth=1, label=name)
    axis.axhline(0, color="black", linewidth=0.4)
    if len(names) <= 16:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
    axis.set_ylabel(title)


def _scores(axis: Any, view: View, frame_s: float) -> None:
    """The classes that ever mattered; the others would be lines at zero."""
    scores, labels = view.observed.scores, view.manifest.labels
    columns = np.argsort(scores.max(axis=0, initial=0.0))[::-1][:12]
    names = [labels[n] if labels else f"{n}" for n in columns]
    _lines(axis, scores[:, columns], names, "scores", frame_s)


def _reach(axis: Any, reach: NDArray[Any], answer: str, frame_s: float) -> None:
    """On a logarithmic axis, of the largest; what fell below `FADED` lies on it."""
    shares = np.maximum(reach / max(float(reach.max()), 1e-30), FADED)
    axis.semilogy((np.arange(len(shares)) + 1) * frame_s, shares, color=INK, linewidth=1.2)
    axis.set_ylim(FADED, 2)
    axis.set_ylabel("gradient of\nthe last answer")
    told = f"of {answer} at the end, to what was heard at each frame; of its largest"
    axis.text(0.005, 0.95, told, transform=axis.transAxes, fontsize=8, va="top")
