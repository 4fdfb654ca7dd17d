"""Variants of a task under one common budget: the same batches in the same order, nothing else changed.

    python -m training.compare commands                  every architecture, at sizes of about 0.2 million weights
    python -m training.compare commands --what dropout   where dropout belongs

Writes training/metrics/<task>-<what>.json after each variant, and goes on there with those that are missing. What is
compared is who learns what from so few batches, made milder than the recipe's (LIGHT), not what each would reach.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

from pipeline.errors import ConfigError
from training import runs, train
from training.fit import fit
from training.recipe import parse_settings

CELLS: dict[str, dict[str, str]] = {
    "rnn": {"layers": "2", "hidden": "256"},
    "lstm": {"layers": "2", "hidden": "128"},
    "lstm_coupled": {"layers": "2", "hidden": "144"},
    "lstm_peephole": {"layers": "2", "hidden": "128"},
    "gru": {"layers": "2", "hidden": "144"},
    "bilstm": {"layers": "2", "hidden": "72", "stream_frames": "80"},
    "cnn": {"layers": "8", "hidden": "144"},
    "crnn": {"layers": "1", "hidden": "160"},
    "attention": {"layers": "3", "hidden": "88"},
}
PLACES = ("dropout_input", "dropout", "dropout_output")
NONE = dict.fromkeys(PLACES, "0") | {"dropout_locked": "no"}
DROPOUT: dict[str, dict[str, str]] = {
    "none": NONE,
    "input": NONE | {"dropout_input": "0.2"},
    "between": NONE | {"dropout": "0.2"},
    "output": NONE | {"dropout_output": "0.2"},
    "between and output": NONE | {"dropout": "0.2", "dropout_output": "0.2"},
    "between and output, locked": NONE | {"dropout": "0.2", "dropout_output": "0.2", "dropout_locked": "yes"},
}
BUDGET = {"passes": "2", "batches": "400", "learning_rate": "5e-3"}
LIGHT = {  # what makes a task harder than its clean recordings needs more batches than these
    "commands": {
        "noisy": "0.2",
        "snr_low_db": "10",
        "stretched": "0",
        "equalised": "0.4",
        "reverberant": "0",
        "warp": "0.1",
        "foreign": "0",
        "spliced": "0",
        "silent": "0.02",
        "masked_frames": "0",
        "average": "0.99",
    }
}


def variants(what: str) -> dict[str, dict[str, str]]:
    """The settings of each variant. Raises ConfigError."""
    if what == "cells":
        return {name: {"cell": name, **size} for name, size in CELLS.items()}
    if what == "dropout":
        return DROPOUT
    raise ConfigError(f"--what {what!r}; there are cells, dropout")


def main(
    task: Annotated[str, typer.Argument(help="A module of training/recipes.")] = "commands",
    what: Annotated[str, typer.Option(help="cells or dropout.")] = "cells",
    setting: Annotated[list[str] | None, typer.Option("--set", help="A field of every variant: name=value.")] = None,
) -> None:
    """Compare variants of a task."""
    train.threads(1)
    path = runs.METRICS / f"{task}-{what}.json"
    commit = runs.commit()  # of the code that runs, whatever is committed meanwhile
    try:
        common = {**BUDGET, **LIGHT.get(task, {}), **parse_settings(setting or [])}
        report: dict[str, Any] = {"task": task, "what": what, "budget": common, "variants": {}}
        if path.is_file():
            report["variants"] = json.loads(path.read_text())["variants"]
        for name, settings in variants(what).items():
            if name in report["variants"]:
                continue
            made = train.chosen(task, {**common, **settings})
            begun = runs.about(made.recipe)
            learner = fit(made, bar=False)
            report["variants"][name] = {
                **begun,
                "commit": commit,
                "settings": settings,
                "seconds": round(learner.seconds, 1),
                "cpu_seconds": round(learner.cpu_seconds, 1),
                "parameters": learner.net.parameter_count,
                "state_bytes": sum(4 * math.prod(state.shape) for state in learner.net.states),
                "latency_frames": learner.net.latency,
                "history": learner.history,
            }
            report |= {k: v for k, v in runs.about(made.recipe).items() if k != "recipe"} | {"commit": commit}
            report["seconds"] = round(sum(v["seconds"] for v in report["variants"].values()), 1)
            runs.write_json(path, report)
            print(name, {k: round(v, 4) for k, v in learner.history[-1].items()}, flush=True)
    except ConfigError as error:
        raise SystemExit(f"refused: {error}") from None


if __name__ == "__main__":
    typer.run(main)
