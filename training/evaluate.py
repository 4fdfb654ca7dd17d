"""How good is it? On data that no training saw, through the very components that serve.

    python -m training.evaluate                  digits: all four folds (those not trained yet are trained first)
    python -m training.evaluate commands         the run's weights on the corpus's own split
    python -m training.evaluate commands --bundle commands      the shipped bundle

Weights become a bundle of their own, never shipped, and the task evaluates it by `forward` on whole signals and by
streaming step. Exit 1 unless the two agree in every answer.

Writes evaluation.json and the task's pictures into the run's folder; --keep also training/metrics/<run or task>.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from pipeline.bundle import Bundle, load
from pipeline.errors import ConfigError
from training import data, export, runs, train
from training.recipe import parse_settings
from training.task import Task, find


def bundle_of(task: str, run: str, settings: dict[str, str]) -> tuple[Task[Any], Bundle]:
    """The weights of a run, or of several (`one+other`), as a bundle in their folder."""
    made, net = runs.read(task, run, settings)
    told = export.told_of(made, task, net=net)
    return made, export.write(net, told, data.RUNS / run / "bundle.onnx", made.max_bytes)


def trained(task: str, fold: str, folder: Path, settings: dict[str, str]) -> None:
    """Train a fold that has not been trained to its end."""
    if (folder / "metrics.json").is_file():
        return
    tqdm.write(f"{fold}: not trained yet, or not to the end; training into {folder}")
    train.train(train.chosen(task, {**settings, "leave_out": fold}), task, folder)


def results(
    task: str, folds: list[str], run: str, bundle: str, settings: dict[str, str]
) -> tuple[Task[Any], dict[str, dict[str, Any]]]:
    """What the task says of each fold's bundle (one named "" without folds), with the seconds its training took.

    Raises ConfigError: a run that left out somebody else than the fold, whom it has learnt from.
    """
    made = find(task).task(find(task).RECIPE)
    if bundle:
        return made, {"": made.evaluate(load(bundle))}
    if made.bundles:
        return made, {name: made.evaluate(load(name)) for name in made.bundles}
    one = bool(run) and "{}" not in run
    every = folds or ([""] if one else list(made.folds)) or [""]
    found = {}
    for fold in tqdm(every, desc="folds", unit="fold", disable=len(every) == 1):
        name = run.replace("{}", fold) if run else f"{task}-without-{fold}" if fold else task
        folders = [data.RUNS / each for each in name.split("+")]
        if fold and len(folders) == 1:
            trained(task, fold, folders[0], {})
        made, opened = bundle_of(task, name, settings)
        left_out = made.recipe.leave_out
        if fold not in ("", left_out):
            raise ConfigError(
                f"run {name} left out {left_out or 'nobody'}, not {fold}: name the folds' runs with {{}} in the fold's "
                "place, or ask for its own alone (no --fold)"
            )
        found[left_out] = {**made.evaluate(opened), **_training(folders), "bundle_bytes": opened.size_bytes}
        told = ", ".join(f"{k} {v:.4g}" for k, v in made.summary({left_out: found[left_out]}).items())
        tqdm.write(f"{left_out or task}: {told}")
    return made, found


def _training(folders: list[Path]) -> dict[str, Any]:
    """What is known of the training; of the others of several runs beside it."""
    first, *others = [_one_training(folder) for folder in folders]
    return {**first, "beside": [each.get("training") for each in others]} if others else first


def _one_training(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    metrics = json.loads(path.read_text())
    begin = metrics["recipe"].get("begin", "")
    names = (
        "command",
        "commit",
        "created",
        "seed",
        "recipe",
        "seconds",
        "cpu_seconds",
        "threads",
        "parameters",
        "history",
    )
    before = _one_training(data.RUNS / begin) if begin else {}
    return {"training": {**{name: metrics[name] for name in names}, "begun_with": before.get("training")}}


def _seconds(training: dict[str, Any] | None) -> float:
    """Of a run, and of the one that it began with."""
    return training["seconds"] + _seconds(training["begun_with"]) if training else 0.0


def main(
    task: Annotated[str, typer.Argument(help="A module of training/recipes.")] = "digits",
    fold: Annotated[list[str] | None, typer.Option(help="Only these folds; default all.")] = None,
    run: Annotated[str, typer.Option(help="The run under runs/; {} is the fold; one+other: both together.")] = "",
    bundle: Annotated[str, typer.Option(help="A bundle, or a shipped one's name, instead of a run's weights.")] = "",
    setting: Annotated[list[str] | None, typer.Option("--set", help="Of the head: head.threshold=0.6.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Also write training/metrics/<run or task>.json.")] = False,
) -> None:
    """Evaluate a task."""
    train.threads(1)
    try:
        began = time.monotonic()
        made, found = results(task, fold or [], run, bundle, parse_settings(setting or []))
    except (ConfigError, export.Refused) as error:
        raise SystemExit(f"refused: {error}") from None
    scores = made.summary(found)
    report = {
        "task": task,
        **runs.about(made.recipe),
        "seconds": round(
            sum(map(_seconds, (t for r in found.values() for t in (r.get("training"), *r.get("beside", ()))))), 1
        ),
        "evaluation_seconds": round(time.monotonic() - began, 1),
        "scores": scores,
        "folds": found,
    }
    if len(found) == 1 and "training" in next(iter(found.values())):
        report["recipe"] = next(iter(found.values()))["training"].pop("recipe")  # as it was then
    name = "+".join(each.replace("{}", "").strip("-") for each in run.split("+")) or task
    output = data.RUNS / name / "evaluation.json"
    runs.write_json(output, report)
    made.pictures(found, output.parent)
    if keep:
        runs.write_json(runs.METRICS / f"{name}.json", report)
    print(json.dumps(scores, indent=1))
    if not all(result["same"] for result in found.values()):
        sys.exit("streamed and whole do not agree: that must not be")


if __name__ == "__main__":
    typer.run(main)
