"""Train a task: truncated back-propagation through time over streams that go on.

    python -m training.train                                    the digits recipe, as shipped
    python -m training.train commands --cell crnn               another architecture
    python -m training.train commands --set hidden=192 --set passes=60
    python -m training.train digits --leave-out george          one fold; george is never listened to
    tensorboard --logdir runs                                   curves while it runs

A run lives in `runs/<name>/`: weights.pt (all that resuming needs), metrics.json, curves.png, tensorboard/, the task's
own pictures. Started again it goes on after its last pass and ends at the same weights.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pipeline.errors import ConfigError
from training import data, runs
from training.fit import Learner, fit
from training.plots import plot_curves
from training.recipe import parse_settings
from training.task import Task, find


def threads(count: int) -> None:
    """Torch's threads, and no denormal numbers: a third of the time goes into what a closed gate lets through."""
    torch.set_num_threads(count)
    torch.set_flush_denormal(True)


def chosen(task: str, settings: dict[str, str], tiny: bool = False) -> Task[Any]:
    """A task under its recipe, overridden; `tiny` first makes it small, and a cell that the module's SIZES name gets
    what stands there. Raises ConfigError."""
    module = find(task)
    recipe = module.RECIPE.overridden(module.TINY) if tiny else module.RECIPE
    if settings.get("cell", recipe.cell) != recipe.cell:
        recipe = dataclasses.replace(recipe, options={})  # they were the other cell's own
    sizes = {} if tiny else getattr(module, "SIZES", {}).get(settings.get("cell"), {})
    return module.task(recipe.overridden({**sizes, **settings}))


def finish(name: str, begun: dict[str, Any], learner: Learner, folder: Path) -> dict[str, Any]:
    """Write what a run is remembered by; the figures. begun: `runs.about` it, when it began."""
    learner.average.load_state_dict(learner.best["weights"])
    figures = {
        "task": name,
        **begun,
        "seconds": round(learner.seconds, 1),
        "cpu_seconds": round(learner.cpu_seconds, 1),
        "threads": torch.get_num_threads(),
        "device": str(learner.precision.device),
        "parameters": learner.net.parameter_count,
        "best_pass": learner.best["passes"],
        "history": learner.history,
    }
    plot_curves(learner.history, folder / "curves.png")
    with torch.no_grad():
        figures |= learner.task.report(learner.average.eval(), folder)
    runs.write_json(folder / "metrics.json", figures)
    return figures


def train(task: Task[Any], name: str, folder: Path, bar: bool = True) -> dict[str, Any]:
    """Train into a folder, or go on there; the figures."""
    begun = runs.about(task.recipe)
    learner = fit(task, folder / "weights.pt", bar=bar, logs=True)
    return finish(name, begun, learner, folder)


def main(
    task: Annotated[str, typer.Argument(help="A module of training/recipes.")] = "digits",
    cell: Annotated[str, typer.Option(help="The architecture, instead of the recipe's.")] = "",
    setting: Annotated[list[str] | None, typer.Option("--set", help="A field of the recipe: name=value.")] = None,
    leave_out: Annotated[str, typer.Option(help="The speaker, subject or fold of the test: never learnt from.")] = "",
    name: Annotated[str, typer.Option(help="The run's folder under runs/.")] = "",
    tiny: Annotated[bool, typer.Option("--tiny", help="The recipe's tiny form: seconds, to see that it runs.")] = False,
    cores: Annotated[int, typer.Option(help="Torch's threads.")] = 1,
) -> None:
    """Train a task."""
    threads(cores)
    try:
        settings = parse_settings(setting or [])
        settings |= {k: v for k, v in (("cell", cell), ("leave_out", leave_out)) if v}
        made = chosen(task, settings, tiny)
        folder = data.RUNS / (name or runs.run_name(task, made.recipe, tiny))
        figures = train(made, task, folder)
    except ConfigError as error:
        raise SystemExit(f"refused: {error}") from None
    last = figures["history"][-1]
    told = ", ".join(f"{k} {v:.4g}" for k, v in last.items() if k not in ("pass", "seconds"))
    print(f"{folder}: {figures['best_pass']} passes in {figures['seconds']:.0f} s; {told}")


if __name__ == "__main__":
    typer.run(main)
