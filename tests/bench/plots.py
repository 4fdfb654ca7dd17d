"""A run as pictures: throughput, latency percentiles, scaling curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.figures import GRID, over
from tests.bench.summary import Row, Run, latencies, percentile, rows, vad_rows

OURS, OTHERS, EDGE = "#2166ac", "#9a9a9a", "#d6604d"


def plot(run: Run, stem: Path) -> list[Path]:
    """Writes STEM-throughput.png, -latency.png, -scaling.png, as far as they were measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    machine = run["machine"]
    about = f"{machine['cpu']}, onnxruntime {machine['packages']['onnxruntime']}, {machine['when']}"
    made = []
    for name, draw in (("throughput", _throughput), ("latency", _latency), ("scaling", _scaling)):
        figure = draw(run, pyplot)
        if figure is not None:
            figure.text(0.995, 0.995, about, ha="right", va="top", fontsize=6, color="#666666")
            path = stem.with_name(f"{stem.name}-{name}.png")
            figure.savefig(path, dpi=130)
            pyplot.close(figure)
            made.append(path)
    return made


def _throughput(run: Run, pyplot: Any) -> Any:
    panels = [("2 x 128 LSTM, 16 kHz log-mel", rows(run)), ("voice activity, Silero VAD v6", vad_rows(run))]
    panels = [(title, found) for title, found in panels if found]
    if not panels:
        return None
    heights = [len(found) for _, found in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, 1.6 + 0.45 * sum(heights)), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (title, found) in zip(axes[:, 0], panels, strict=True):
        _bars(axis, title, found)
    return figure


def _bars(axis: Any, title: str, found: Sequence[Row]) -> None:
    names = [row.name for row in found]
    colours = [EDGE if name == "ceiling" else OURS if name in ("statebelt", "words") else OTHERS for name in names]
    streams = [row.streams for row in found]
    axis.barh(names, streams, color=colours)
    for n, value in enumerate(streams):
        axis.text(value, n, f" {value:,.0f}", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, max(streams) * 1.12)
    axis.set_title(f"{title}: live streams a core", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _latency(run: Run, pyplot: Any) -> Any:
    shown = latencies(run)
    if not shown:
        return None
    figure, axis = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, turns in shown:
        values = [percentile(turns, "pushed_ms", percent).middle for percent in GRID]
        axis.plot(range(len(GRID)), values, marker="o", markersize=3, label=name)
    axis.set_xticks(range(len(GRID)), [f"{percent:g}" for percent in GRID])
    axis.set_yscale("log")
    axis.set_xlabel("percentile")
    axis.set_ylabel("ms from push to result")
    axis.set_title("latency, open loop", loc="left", fontsize=10)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8, frameon=False)
    return figure


def _scaling(run: Run, pyplot: Any) -> Any:
    curves = {name: run["curves"][name] for name in ("known", "partitions", "workers") if name in run["curves"]}
    if not curves:
        return None
    figure, axes = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3.6), squeeze=False, layout="constrained")
    labels = {"known": "known streams", "partitions": "partitions", "workers": "worker processes"}
    for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
        points = [int(point) for point in curve]
        for key, label, colour in (("us", "worker", OURS), ("server_us", "server", OTHERS)):
            each = [over(turns, key) for turns in curve.values()]
            axis.plot(points, [series.middle for series in each], marker="o", color=colour, label=label)
            axis.fill_between(
                points, [min(s.values) for s in each], [max(s.values) for s in each], color=colour, alpha=0.2
            )
        if name != "workers":
            axis.set_xscale("log")
        axis.set_xticks(points, [f"{point:,}" for point in points], minor=False)
        axis.minorticks_off()
        axis.set_ylim(0, 1.25 * max(median(s["us"] for s in turns) for turns in curve.values()))
        axis.set_xlabel(labels[name])
        axis.set_ylabel("CPU us a 100 ms chunk")
        axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
