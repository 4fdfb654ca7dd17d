"""Where runs live and what they say of themselves: folders under `runs/`, and figures worth keeping beside the code."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ConfigError
from training import data
from training.models import Net, Together
from training.recipe import Recipe
from training.task import Task, find

METRICS = data.ROOT / "training" / "metrics"


def run_name(task: str, recipe: Recipe, tiny: bool = False) -> str:
    """A run's folder where none is named: what of the recipe is not as the task's own.

    >>> run_name("digits", find("digits").RECIPE.overridden({"cell": "gru"}))
    'digits-gru'
    """
    parts = [task]
    if recipe.cell != find(task).RECIPE.cell:
        parts.append(recipe.cell)
    if recipe.leave_out:
        parts.append(f"without-{recipe.leave_out}")
    return "-".join([*parts, "tiny"] if tiny else parts)


def about(recipe: Recipe) -> dict[str, Any]:
    """What every file of figures says: how it was made."""
    return {
        "command": " ".join(["python -m", _module(), *sys.argv[1:]]),
        "commit": commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": recipe.seed,
        "recipe": recipe.to_dict(),
    }


def _module() -> str:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name


def commit() -> str:
    """The repository's commit, `unknown` outside of one."""
    command = ["git", "-C", str(data.ROOT), "rev-parse", "--short=12", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replaced at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(path)


def read_weights(task: str, path: Path, settings: Mapping[str, str] | None = None) -> tuple[Task[Any], Net]:
    """The kept weights of a run, in a net on the CPU, and its task under the recipe that trained them, overridden.

    Raises ConfigError: there are none.
    """
    if not path.is_file():
        raise ConfigError(f"no weights at {path}: run `python -m training.train {task}` first, or name another run")
    module = find(task)
    state = torch.load(path, weights_only=True, map_location="cpu")
    now = module.RECIPE.to_dict()
    # The head, what is made of the scores, is no part of the training: as the recipe has it now.
    values = {**state["recipe"], **({"head": now["head"]} if "head" in now else {})}
    made = module.task(type(module.RECIPE).from_dict(values).overridden(settings or {}))
    net = made.build()
    try:
        net.load_state_dict(state["best"]["weights"])
    except RuntimeError:
        raise ConfigError(f"the weights at {path} are of another model than the recipe now makes: train anew") from None
    return made, net.eval()


def read(task: str, names: str, settings: Mapping[str, str] | None = None) -> tuple[Task[Any], Net | Together]:
    """The kept weights of a run, or of several (`one+other`), which answer together. The task is the first one's.

    settings: of the head alone, for the weights are what they are. Raises ConfigError.
    """
    if strange := [name for name in settings or {} if not name.startswith("head.")]:
        raise ConfigError(f"{strange[0]!r} decides a training: of weights that are there, set head.name=value only")
    every = [read_weights(task, data.RUNS / name / "weights.pt", settings) for name in names.split("+")]
    made, net = every[0]
    return made, net if len(every) == 1 else Together([each for _, each in every]).eval()
