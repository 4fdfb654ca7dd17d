"""The generated tasks, every variant side by side: what remembers, for how long, and what it takes to learn it.

    python -m training.memory moving_average       with and without carried state, four lengths of segment
    python -m training.memory adding               simple RNN, LSTM, GRU; T = 200, 400, 600; clipped and not
    python -m training.memory copying              the same three cells

Each variant is a run of the shared trainer (`training.fit`) under the task's recipe with a few fields set, and could be
had alone: `python -m training.train adding --cell lstm --set frames=400`. Written to `training/metrics/<task>.json`, as
each variant ends; started again, it goes on with those that are missing, unless the recipe has changed. Pictures go to
`runs/<task>/`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pipeline.errors import ConfigError
from training import data, memory_plots, runs
from training.fit import fit
from training.recipe import parse_settings
from training.task import Task, find
from training.train import threads

Variant = dict[str, str]
"""What a variant sets of the recipe, by name."""


def variants(task: str) -> list[Variant]:
    """All variants of a task, in the order of the plots. Raises ConfigError: a task without any."""
    if task == "moving_average":
        return [{"lahead": f"{n}", "carry": carry} for n in (1, 2, 3, 6) for carry in ("yes", "no")]
    if task == "adding":
        return [
            # The longest one is found after 300 batches and wants 800 to be learnt well.
            {"cell": cell, "frames": f"{frames}", "clip_norm": clip, **({"passes": "40"} if frames == 600 else {})}
            for frames in (200, 400, 600)
            for clip in ("1", "0")
            for cell in ("rnn", "lstm", "gru")
        ]
    if task == "copying":
        return [{"cell": cell} for cell in ("rnn", "lstm", "gru")]
    raise ConfigError(f"no variants of {task!r}; there are moving_average, adding, copying")


def study(task: str, chosen: list[Variant], settings: Variant, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Train the variants that are not `known`, one after the other; each is `known`'s next entry."""
    module, commit = find(task), runs.commit()
    for variant in chosen:
        recipe = module.RECIPE.overridden({**settings, **variant})
        done = next((run for run in known if run["variant"] == variant and run["recipe"] == _plain(recipe)), None)
        if done is not None:
            yield done
            continue
        made = module.task(recipe)
        began, cpu = time.monotonic(), time.process_time()
        learner = fit(made, bar=False)
        yield {
            "variant": variant,
            "commit": commit,
            "recipe": _plain(recipe),
            "parameters": learner.net.parameter_count,
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "history": [{k: _short(v) for k, v in row.items()} for row in learner.history],
            **shown(made, learner.average.eval()),
        }


def shown(task: Task[Any], net: Any) -> dict[str, Any]:
    """What the plots need beside the curves: answers of the moving average; reach of the others."""
    if task.recipe.name == "moving_average":
        with torch.no_grad():
            said, wanted = task.answers(net)  # type: ignore[attr-defined]
        first = {"said": said[0, :80], "wanted": wanted[0, :80]}
        return {name: [_short(v) for v in values.tolist()] for name, values in first.items()}
    return {"reach": [_short(v) for v in reach(task, net)]}


def reach(task: Task[Any], net: Any) -> list[float]:
    """How far the last answer's gradient reaches back: its norm for each input frame, mean over 32 sequences, `[T]`.

    Of the largest value of the last row, by the features that the encoder is fed.
    """
    batch, _ = task.batch(2**30, None)
    with torch.no_grad():
        x = task.features(net, batch)[:32]
    x.requires_grad_(True)
    logits, *_ = net.logits_of(x, *net.initial_state(len(x)))
    logits[:, -1].amax(dim=-1).sum().backward()
    assert x.grad is not None
    return list(x.grad.norm(dim=-1).mean(dim=0).tolist())


def _plain(recipe: Any) -> dict[str, Any]:
    """As JSON gives it back."""
    return dict(json.loads(json.dumps(recipe.to_dict())))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def main(
    task: Annotated[str, typer.Argument(help="moving_average, adding or copying.")],
    setting: Annotated[list[str] | None, typer.Option("--set", help="A field of the recipe: name=value.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="The recipe's tiny form, to see that it runs.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the figures go.")] = None,
) -> None:
    """Train every variant of a generated task."""
    threads(1)
    try:
        chosen = variants(task)
        settings = {**(find(task).TINY if tiny else {}), **parse_settings(setting or [])}
        path = output or (data.RUNS / f"{task}-tiny" / "metrics.json" if tiny else runs.METRICS / f"{task}.json")
        known = json.loads(path.read_text())["runs"] if path.is_file() else []
        about = runs.about(find(task).RECIPE.overridden(settings))
        done: list[dict[str, Any]] = []
        for run in study(task, chosen, settings, known):
            done.append(run)
            seconds, cpu = (round(sum(one[name] for one in done), 1) for name in ("seconds", "cpu_seconds"))
            runs.write_json(path, {"task": task, **about, "seconds": seconds, "cpu_seconds": cpu, "runs": done})
            told = " ".join(f"{k}={v}" for k, v in run["variant"].items())
            found = ", ".join(f"{k} {v:.4g}" for k, v in run["history"][-1].items() if k not in ("pass", "seconds"))
            print(f"{told}: {found} ({run['seconds']:.0f} s)", flush=True)
    except ConfigError as error:
        raise SystemExit(f"refused: {error}") from None
    (data.RUNS / task).mkdir(parents=True, exist_ok=True)
    for name, figure in memory_plots.figures(task, done).items():
        figure.savefig(data.RUNS / task / f"{name}.png", dpi=110)


if __name__ == "__main__":
    typer.run(main)
