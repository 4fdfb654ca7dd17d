"""The chapter of the generated tasks."""

from __future__ import annotations

from typing import Any

from training import memory_plots
from training.report_bars import MEMORY, Metrics
from training.report_page import Section, absent, heading, picture, table
from training.report_sections import number, source

STUDIES = {
    "moving_average": "The moving average: what carried state is for",
    "adding": "The adding problem: two numbers, hundreds of frames apart",
    "copying": "Copy memory: ten symbols, a hundred frames, the ten symbols again",
}


def long_memory(metrics: Metrics) -> Section:
    """The generated tasks."""
    section = Section("memory", "Long memory")
    for name, title in STUDIES.items():
        section.parts.append(heading(title))
        one = metrics.get(name)
        if one is None or not one.get("runs"):
            section.parts.append(absent(f"{MEMORY} {name}"))
            continue
        for figure, caption in zip(memory_plots.figures(name, one["runs"]).values(), CAPTIONS[name], strict=True):
            section.parts.append(picture(figure, caption))
        section.parts += [study(one["runs"]), source(one)]
    return section


CAPTIONS = {
    "moving_average": (
        "Two nets, the same batches; the one goes on with its state, the other begins each segment with zeros.",
        "With segments of one sample: who carries follows the truth, who does not can only scale the last sample.",
    ),
    "adding": (
        "Mean squared error on 500 sequences never learnt from. Dotted: always saying 1. Dashed: solved.",
        "Gradient of the answer to every input frame, mean over 32 sequences, the longest T: the simple RNN's is gone.",
    ),
    "copying": (
        "Symbols said right, on 250 sequences never learnt from.",
        "Gradient of the last symbol's best class to every input frame, mean over 32 sequences.",
    ),
}


def study(runs: list[dict[str, Any]]) -> str:
    """A row a variant, its last figures."""
    fields = list(dict.fromkeys(name for run in runs for name in run["variant"]))
    figures = [name for name in runs[0]["history"][-1] if name not in ("pass", "seconds")]
    heads = [*fields, "parameters", *(name.replace("_", " ") for name in figures), "CPU seconds"]
    rows = [
        [*(run["variant"].get(name, "") for name in fields), f"{run['parameters']:,}",
         *(number(run["history"][-1][name]) for name in figures), f"{run['cpu_seconds']:.0f}"]
        for run in runs
    ]  # fmt: skip
    return table(heads, rows, numbers=range(len(fields), len(heads)))
