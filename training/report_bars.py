"""What each task was to reach, and what the committed figures say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.memory import variants
from training.recipes import adding

Metrics = dict[str, dict[str, Any]]
"""What the files of `training/metrics` hold, by their names without `.json`."""

Found = tuple[str, bool | None, str]
"""What is told, whether the bar is met (None: there is none), and the file that says so."""

CONVERGED = 0.1
"""Of the moving average's variance: less left unexplained counts as converged."""


@dataclass(frozen=True)
class Bar:
    """One line of the tables of tasks.

    command: that makes the figure. found: of the metrics; raises LookupError where they say nothing of it.
    """

    task: str
    what: str
    wanted: str
    command: str
    found: Callable[[Metrics], Found]


def score(file: str, name: str, least: float | None = None, most: float | None = None, percent: bool = True) -> Any:
    """A figure of `scores`, held against a bar."""

    def found(metrics: Metrics) -> Found:
        value = float(metrics[file]["scores"][name])
        met = (least is None or value >= least) and (most is None or value < most)
        told = f"{100 * value:.2f} %" if percent else f"{value:.4g}"
        return told, None if least is None and most is None else met, file

    return found


def detects(metrics: Metrics) -> Found:
    """Digits of left-out speakers in continuous noise, and what is taken for one in foreign speech."""
    scores = metrics[DETECTOR]["scores"]
    share, alarms = float(scores["detected_in_10_db_noise"]), float(scores["false_alarms_an_hour"])
    return f"{100 * share:.1f} % at {alarms:.2f}", share >= 0.85 and alarms <= 10, DETECTOR


def windows(metrics: Metrics) -> Found:
    """Windows of activity within the stream; beside them those that are heard with less or nothing before them."""
    scores = metrics["activity"]["scores"]
    value = float(scores["accuracy_windows"])
    others = {"accuracy_windows_pieces": "in pieces of 30 s", "accuracy_windows_alone": "each alone"}
    beside = ", ".join(f"{100 * scores[name]:.1f} % {told}" for name, told in others.items() if name in scores)
    return f"{100 * value:.2f} % within the recording" + (f"; {beside}" if beside else ""), value >= 0.93, "activity"


def models(metrics: Metrics, *cells: str) -> list[str]:
    """Files of evaluated commands models in float32 that stream without looking ahead, the best first."""
    names = [
        name
        for name, one in metrics.items()
        if name.split("-")[0] == "commands" and "int8" not in name and "accuracy_streaming" in one.get("scores", {})
    ]
    kept = [name for name in names if cell_of(metrics[name]) != "bilstm"]
    kept = [name for name in kept if not cells or cell_of(metrics[name]) in cells]
    if not kept:
        raise LookupError("no commands model was evaluated yet")
    return sorted(kept, key=lambda name: -float(metrics[name]["scores"]["accuracy_streaming"]))


def cell_of(one: dict[str, Any]) -> str:
    """The architecture that a file is of."""
    return str(one.get("recipe", {}).get("cell", "unknown"))


def words(least: float, *cells: str) -> Any:
    """The best of the commands models, of these architectures."""

    def found(metrics: Metrics) -> Found:
        name = models(metrics, *cells)[0]
        value = float(metrics[name]["scores"]["accuracy_streaming"])
        return f"{100 * value:.2f} % ({cell_of(metrics[name])})", value >= least, name

    return found


def in_noise(snr_db: int, most_lost: float | None = None) -> Any:
    """The best model's words in noise, and how many points that is below clean speech."""

    def found(metrics: Metrics) -> Found:
        name = models(metrics)[0]
        scores = metrics[name]["scores"]
        noisy = scores[f"accuracy_at_{snr_db}_db"]
        lost = 100 * (scores["accuracy_streaming"] - noisy)
        told = f"{100 * noisy:.2f} %, {lost:.1f} points lost ({cell_of(metrics[name])})"
        return told, None if most_lost is None else lost <= most_lost, name

    return found


def averaging(metrics: Metrics) -> Found:
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
    return f"{told}, stateless at least {100 * min(begun):.1f} %", right, "moving_average"


def adds(metrics: Metrics) -> Found:
    """LSTM and GRU under the bar at every T, clipped; the simple RNN at its baseline."""
    last = [(run["recipe"], run["history"][-1]["loss"]) for run in metrics["adding"]["runs"]]
    gated = [loss for recipe, loss in last if recipe["cell"] != "rnn" and recipe["clip_norm"]]
    simple = [loss for recipe, loss in last if recipe["cell"] == "rnn"]
    guessing = min(run["history"][-1]["guessing_loss"] for run in metrics["adding"]["runs"])
    if len(last) < len(variants("adding")):
        raise LookupError("not all variants are trained yet")
    met = max(gated) < adding.SOLVED and min(simple) > 0.9 * guessing
    return f"LSTM, GRU at most {max(gated):.4f}; simple RNN {min(simple):.3f} to {max(simple):.3f}", met, "adding"


def copies(metrics: Metrics) -> Found:
    """Symbols said right by each cell."""
    last = {run["recipe"]["cell"]: run["history"][-1]["right"] for run in metrics["copying"]["runs"]}
    met = min(last["lstm"], last["gru"]) > 0.9 and last["rnn"] < 0.5
    return ", ".join(f"{cell} {100 * right:.1f} %" for cell, right in last.items()), met, "copying"


DETECTOR = "digits-crnn+digits-voice"
MEMORY = "python -m training.memory"
EVALUATE = "make evaluate KEEP=1 TASK="
BARS = (
    Bar("digits", "English digits, 8 kHz, left-out speakers, streamed", "at least 88 %", EVALUATE + "digits",
        score("digits", "accuracy_streaming", least=0.88)),
    Bar("digits-crnn", "the same as a detector in noise at 10 dB; false alarms an hour", "at least 85 % at most 10",
        "python -m training.evaluate digits (the command in training/README.md) --keep", detects),
    Bar("commands", "40 Arabic words, 16 kHz, val speakers, streamed: LSTM", "at least 95 %",
        EVALUATE + "commands", words(0.95, "lstm")),
    Bar("commands", "the same, best causal model", "at least 97.5 %", EVALUATE + "commands", words(0.975)),
    Bar("commands", "in noise at 10 dB", "at most 3 points lost", EVALUATE + "commands", in_noise(10, 3.0)),
    Bar("commands", "in noise at 0 dB", "-", EVALUATE + "commands", in_noise(0)),
    Bar("activity", "windows of 2.56 s, 6 classes, left-out subjects", "at least 93 %", EVALUATE + "activity",
        windows),
    Bar("activity", "12 classes, every sample, macro F1", "-", EVALUATE + "activity",
        score("activity", "macro_f1_samples")),
    Bar("forecast", "next 24 h of 7 series, ETTh1, mean squared error", "below 0.50", EVALUATE + "forecast",
        score("forecast", "mse", most=0.50, percent=False)),
    Bar("anomaly", "NAB, standard profile", "at least 55", EVALUATE + "anomaly",
        score("anomaly", "nab_standard", least=55.0, percent=False)),
    Bar("anomaly", "SKAB, F1", "at least 0.75", EVALUATE + "anomaly",
        score("anomaly", "skab_f1", least=0.75, percent=False)),
    Bar("moving average", "lahead < tsteps: who converges", "only who carries its state", f"{MEMORY} moving_average",
        averaging),
    Bar("adding problem", "T = 200, 400, 600, mean squared error", "LSTM, GRU below 0.01; RNN stays at 0.167",
        f"{MEMORY} adding", adds),
    Bar("copy memory", "symbols right after 100 frames", "LSTM and GRU above 90 %, RNN not", f"{MEMORY} copying",
        copies),
)  # fmt: skip
"""In the order of the issue."""
