"""What only running a graph tells: which lengths of its outputs are streams, frames and classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.adopt.graph import Graph
from pipeline.component import Array

_PROBES = ((3, 5), (7, 11))
"""Streams, and blocks: two runs in which no length stays the same by chance."""


@dataclass
class Findings:
    """What was made of a graph: `model` for a manifest; `lines`: what, and how it is known; `asked`: what lacks."""

    model: dict[str, Any] = field(default_factory=dict)
    lines: list[tuple[str, str, str]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def found(self, what: str, value: object, how: str) -> None:
        """Note one finding."""
        self.lines.append((what, str(value), how))


def _feeds(model: Mapping[str, Any], streams: int, frames: int) -> dict[str, Array]:
    """Zeros, and the constants, for so many streams and frames."""
    lengths = {"B": streams, "T": frames, "F": model["features"], "1": 1}
    feeds = {model["input"]: np.zeros([lengths[axis] for axis in model["input_axes"]], np.float32)}
    for one in model["states"] + model["given"]:
        shape = list(one["shape"])
        shape[one["batch_axis"]] = streams
        feeds[one["input"]] = np.full(shape, one.get("initial", 0.0), one.get("dtype", "float32"))
    for one in model["constants"]:
        feeds[one["input"]] = np.full(one["shape"], one["value"], one["dtype"])
    return feeds


def probe(graph: Graph, model: dict[str, Any], about: Findings) -> None:
    """Run it twice, and see which lengths of the output are streams, frames, classes."""
    carried = {s["output"] for s in model["states"]}
    free = [t.name for t in graph.outputs if t.name not in carried and t.dtype == "float32"]
    if "output" not in model:
        if not free:
            about.asked.append(f"no output of float32 is left for scores ({', '.join(map(str, graph.outputs))})")
            return
        model["output"] = free[0]
        about.found("output", graph.output(free[0]), "the first output of floats that is no state")
    unused = [name for name in free if name not in (model["output"], *model.get("also", []))]
    if unused:
        about.found("not used", ", ".join(unused), "to have them behind the scores: --also NAME")
    block = model.get("block", 1)
    sizes = [(1 if model.get("one_stream") else b, block if model.get("one_block") else t * block) for b, t in _PROBES]
    names = [model["output"], *model.get("also", [])]
    runs = [graph.run(_feeds(model, b, t), names) for b, t in sizes]
    columns = []
    for name, *shapes in zip(names, *([y.shape for y in ys] for ys in runs), strict=True):
        axes, classes = _read(name, shapes, sizes, block, about)
        if name == names[0]:
            model.setdefault("output_axes", axes)
            about.found("output axes", model["output_axes"], "two runs of the graph")
        columns.append(classes)
    model.setdefault("classes", sum(columns))
    about.found("scores a frame", model["classes"], "two runs of the graph")


def _read(
    name: str, shapes: list[tuple[int, ...]], sizes: list[tuple[int, int]], block: int, about: Findings
) -> tuple[str, int]:
    """(axes, classes) of an output that had these shapes when so many streams and frames were run."""
    axes, classes = "", 1
    (b1, t1), (b2, t2) = sizes
    for n1, n2 in zip(*shapes, strict=True):
        if (n1, n2) == (b1, b2) and b1 != b2:
            axes += "B"
        elif (n1, n2) == (t1, t2) and (t1 != t2 or (n1 > 1 and n1 == block and "T" not in axes)):
            axes += "T"
        elif n1 == n2 == 1:
            axes += "1"
        elif n1 == n2 and "C" not in axes:
            axes, classes = axes + "C", n1
        else:
            about.asked.append(
                f"output {name!r} has shapes {list(shapes[0])} for {b1} streams of {t1} frames and {list(shapes[1])} "
                f"for {b2} of {t2}; expected a row of scores for each frame. Export it so, or choose another --output"
            )
            return axes, classes
    if (t1 != t2 or t1 > 1) and "T" not in axes:
        about.asked.append(
            f"output {name!r} has shape {list(shapes[0])} for {t1} frames; expected a row of scores for each frame"
        )
    return axes, classes
