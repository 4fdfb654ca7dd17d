"""What each task was to reach, and what the committed figures say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.memory import variants
from training.recipes import adding

Metrics = dict[str, dict[str, Any]]
"""What the files of `training/metrics` hold, by their names without `.json`."""

CONVERGED = 0.05
"""Of the moving average's variance: less left unexplained counts as converged."""


@dataclass(frozen=True)
class Bar:
    """One line of the tables of tasks.

    file: of `training/metrics`. command: that makes it. found: of the metrics, (told, met; None: no bar); raises
    LookupError where the file says nothing of it.
    """

    task: str
    what: str
    wanted: str
    file: str
    command: str
    found: Callable[[Metrics], tuple[str, bool | None]]


def score(file: str, name: str, least: float | None = None, most: float | None = None, percent: bool = True) -> Any:
    """A figure of `scores`, held against a bar."""

    def found(metrics: Metrics) -> tuple[str, bool | None]:
        value = float(metrics[file]["scores"][name])
        met = (
            None
            if least is None and most is None
            else (least is None or value >= least) and (most is None or value < most)
        )
        told = f"{100 * value:.2f} %" if percent else f"{value:.3f}"
        return told, None if least is None and most is None else met

    return found


def best(metrics: Metrics) -> tuple[str, bool | None]:
    """The best of all commands models that stream without looking ahead."""
    found = {
        name: float(one["scores"]["accuracy_streaming"])
        for name, one in metrics.items()
        if name.split("-")[0] == "commands" and "accuracy_streaming" in one.get("scores", {})
        and one.get("recipe", {}).get("cell") != "bilstm"
    }  # fmt: skip
    name = max(found, key=lambda key: found[key])
    cell = metrics[name].get("recipe", {}).get("cell", name)
    return f"{100 * found[name]:.2f} % ({cell}, {name}.json)", found[name] >= 0.975


def lost_in_noise(metrics: Metrics) -> tuple[str, bool | None]:
    """Points between clean speech and 10 dB."""
    scores = metrics["commands"]["scores"]
    lost = 100 * (scores["accuracy_streaming"] - scores["accuracy_at_10_db"])
    return f"{100 * scores['accuracy_at_10_db']:.2f} %, {lost:.2f} points lost", lost <= 3.0


def averaging(metrics: Metrics) -> tuple[str, bool | None]:
    """Who converges, of those that carry and those that do not."""
    carried: list[float] = []
    begun: list[float] = []
    right = True
    for run in metrics["moving_average"]["runs"]:
        recipe, left = run["recipe"], run["history"][-1]["unexplained"]
        short = recipe["lahead"] < recipe["tsteps"]
        right &= (left < CONVERGED) == (recipe["carry"] or not short)
        if short:
            (carried if recipe["carry"] else begun).append(left)
    told = f"unexplained with lahead < tsteps: carrying at most {100 * max(carried):.1f} %"
    if len(metrics["moving_average"]["runs"]) < len(variants("moving_average")):
        raise LookupError("not all variants are trained yet")
    return f"{told}, stateless at least {100 * min(begun):.1f} %", right


def adds(metrics: Metrics) -> tuple[str, bool | None]:
    """LSTM and GRU under the bar at every T, clipped; the simple RNN at its baseline."""
    last = [(run["recipe"], run["history"][-1]["loss"]) for run in metrics["adding"]["runs"]]
    gated = [loss for recipe, loss in last if recipe["cell"] != "rnn" and recipe["clip_norm"]]
    simple = [loss for recipe, loss in last if recipe["cell"] == "rnn"]
    guessing = min(run["history"][-1]["guessing_loss"] for run in metrics["adding"]["runs"])
    if len(last) < len(variants("adding")):
        raise LookupError("not all variants are trained yet")
    met = max(gated) < adding.SOLVED and min(simple) > 0.9 * guessing
    return f"LSTM, GRU at most {max(gated):.4f}; simple RNN {min(simple):.3f} to {max(simple):.3f}", met


def copies(metrics: Metrics) -> tuple[str, bool | None]:
    """Symbols said right by each cell."""
    last = {run["recipe"]["cell"]: run["history"][-1]["right"] for run in metrics["copying"]["runs"]}
    met = min(last["lstm"], last["gru"]) > 0.9 and last["rnn"] < 0.5
    return ", ".join(f"{cell} {100 * right:.1f} %" for cell, right in last.items()), met


MEMORY = "python -m training.memory"
BARS = (
    Bar("digits", "English digits, 8 kHz, left-out speakers, streamed", "at least 88 %", "digits",
        "make evaluate TASK=digits", score("digits", "accuracy_streaming", least=0.88)),
    Bar("commands", "40 Arabic words, 16 kHz, val speakers, streamed: LSTM", "at least 95 %", "commands",
        "make evaluate TASK=commands", score("commands", "accuracy_streaming", least=0.95)),
    Bar("commands", "the same, best causal model", "at least 97.5 %", "commands", "make evaluate TASK=commands", best),
    Bar("commands", "in noise at 10 dB", "at most 3 points lost", "commands", "make evaluate TASK=commands",
        lost_in_noise),
    Bar("commands", "in noise at 0 dB", "-", "commands", "make evaluate TASK=commands",
        score("commands", "accuracy_at_0_db")),
    Bar("activity", "windows of 2.56 s, 6 classes, left-out subjects", "at least 93 %", "activity",
        "make evaluate TASK=activity", score("activity", "accuracy_windows", least=0.93)),
    Bar("activity", "12 classes, every sample, macro F1", "-", "activity", "make evaluate TASK=activity",
        score("activity", "macro_f1_samples")),
    Bar("forecast", "next 24 h of 7 series, ETTh1, mean squared error", "below 0.50", "forecast",
        "make evaluate TASK=forecast", score("forecast", "mse", most=0.50, percent=False)),
    Bar("anomaly", "NAB, standard profile", "at least 55", "anomaly", "make evaluate TASK=anomaly",
        score("anomaly", "nab_standard", least=55.0, percent=False)),
    Bar("anomaly", "SKAB, F1", "at least 0.75", "anomaly", "make evaluate TASK=anomaly",
        score("anomaly", "skab_f1", least=0.75, percent=False)),
    Bar("moving average", "lahead < tsteps: who converges", "only who carries its state", "moving_average",
        f"{MEMORY} moving_average", averaging),
    Bar("adding problem", "T = 200, 400, 600, mean squared error", "LSTM, GRU below 0.01; RNN stays at 0.167", "adding",
        f"{MEMORY} adding", adds),
    Bar("copy memory", "symbols right after 100 frames", "LSTM and GRU above 90 %, RNN not", "copying",
        f"{MEMORY} copying", copies),
)  # fmt: skip
"""In the order of the issue."""
