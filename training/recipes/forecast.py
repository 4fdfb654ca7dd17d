"""The next 24 hours of seven series, from a stream of hours: a line over the last week, and a GRU that remembers more.

Cost: see RECIPE, minutes on one core; expected, `training/metrics/forecast.json`: a mean squared error (standardised,
the benchmark's split) well below LSTMa's published 0.650. The same hour of the day before is 0.424, whatever is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from pipeline.bundle import Bundle
from pipeline.component import Array
from pipeline.frontend import Window
from pipeline.manifest import ForecastHead, InputSpec, Manifest, Provenance, WindowFrontend
from training import forecast_data as corpus
from training import sensing
from training.forecast_data import JUDGED, LEARNT, RATE_HZ, STOPPED
from training.forecast_net import ForecastNet
from training.graph import model_spec
from training.losses import squared_error
from training.models import Net
from training.recipe import Recipe
from training.task import Batch, Task, encoder_of, whole

LICENCE = "Apache-2.0; learnt from ETTh1 (CC BY-ND 4.0; no value of it is in the bundle)"
DAY = 24


@dataclass(frozen=True)
class Forecast(Recipe):
    """Fields beyond `Recipe`'s. window: hours under the line. horizon: hours foretold. dropout_line: of its inputs.

    batch_frames: hours of a batch; life: a stream ends after so many batches at most.
    """

    name: str = "forecast"
    window: int = 168
    horizon: int = 24
    dropout_line: float = 0.0
    batch_frames: int = 96
    life: int = 8


RECIPE = Forecast(
    cell="gru",
    layers=1,
    hidden=32,
    dropout_output=0.5,
    passes=40,
    batches=12,
    streams=16,
    learning_rate=2e-3,
    weight_decay=1e-2,
    average=0.98,
    patience_passes=12,
)
TINY = {
    "hidden": "8",
    "window": "48",
    "batch_frames": "48",
    "streams": "8",
    "passes": "4",
    "batches": "8",
    "learning_rate": "1e-2",
    "average": "0.5",
    "patience_passes": "0",
}


class ForecastTask(Task[Forecast]):
    """One stream of 20 months: 12 learnt from, 4 to stop by, 4 to be judged by."""

    max_bytes = 300_000
    note = "scores: mean squared and absolute error on the four test months of ETTh1, standardised, 24 hours ahead"

    @cached_property
    def _values(self) -> corpus.Values:
        return corpus.series()[1]

    @cached_property
    def _frontend(self) -> Window:
        return Window(self.recipe.window, 1, self._values.shape[1])

    def build(self) -> Net:
        r, count = self.recipe, len(corpus.series()[0])
        return ForecastNet(encoder_of(r, count), r.window, count, r.horizon, r.dropout_line)

    def prepare(self, net: Net) -> None:
        assert isinstance(net, ForecastNet)
        net.fit(torch.from_numpy(self._values[: LEARNT[1]].astype(np.float64)))

    def batch(self, index: int, context: Any) -> tuple[Batch, Any]:
        """Streams go on from the batch before, or begin anew somewhere in the first twelve months."""
        r, rng = self.recipe, np.random.default_rng([self.recipe.seed, index])
        at, left, state = context or (
            np.zeros(r.streams, int), np.zeros(r.streams, int), self._frontend.initial_state(r.streams)
        )  # fmt: skip
        fresh = left == 0
        last = LEARNT[1] - r.horizon - r.batch_frames
        at = np.where(fresh, rng.integers(0, last + 1, r.streams), at)
        left = np.where(fresh, rng.integers(1, r.life + 1, r.streams), left)
        hours = at[:, None] + np.arange(r.batch_frames)
        state = {name: np.where(fresh[:, None, None], np.float32(0), value) for name, value in state.items()}
        frames, state = self._frontend.step(self._values[hours], state)
        wanted = corpus.standardised(corpus.following(self._values, hours.ravel(), r.horizon))
        target = torch.from_numpy(wanted.reshape(*hours.shape, -1))
        made = Batch(torch.from_numpy(frames), {"next": target}, torch.ones(hours.shape), torch.from_numpy(fresh))
        left = np.where(at + r.batch_frames > last, 0, left - 1)
        return made, (at + r.batch_frames, left, state)

    def loss(self, logits: Tensor, target: dict[str, Tensor], weight: Tensor) -> Tensor:
        return squared_error(logits, target["next"], weight)

    def validate(self, net: Net) -> dict[str, float]:
        """The four months behind those that are learnt from, in one stream with them; the test months are not seen."""
        frames, _ = self._frontend.step(self._values[None, : STOPPED[1]], self._frontend.initial_state(1))
        told = whole(net, torch.from_numpy(frames))[0].numpy()
        error, absolute = self._errors(told, STOPPED)
        return {"loss": float(error.mean()), "absolute_error": float(absolute.mean())}

    def _errors(self, told: Array, part: tuple[int, int]) -> tuple[Array, Array]:
        """Squared and absolute, `[n, horizon, S]`, standardised, of the forecasts `[T, C]` of a stream from hour 0."""
        at = corpus.origins(part, self.recipe.horizon)
        wanted = corpus.following(self._values, at, self.recipe.horizon)
        apart = corpus.standardised(told[at].reshape(wanted.shape)) - corpus.standardised(wanted)
        return np.square(apart, dtype=np.float64), np.abs(apart, dtype=np.float64)

    def manifest(self, provenance: Provenance) -> Manifest:
        r, (names, _) = self.recipe, corpus.series()
        head = ForecastHead(series=names, horizon=r.horizon, context_frames=r.window)
        return Manifest(
            task="the next 24 hours of an electricity transformer's loads and oil temperature, from a stream of hours",
            labels=head.labels,
            licence=LICENCE,
            provenance=provenance,
            input=InputSpec(sample_rate_hz=RATE_HZ, channels=len(names), sample_type="float32"),
            frontend=WindowFrontend(window_samples=r.window, hop_samples=1),
            model=model_spec(self.build()),
            head=head,
        )

    def evaluate(self, bundle: Bundle) -> dict[str, Any]:
        """The 20 months as one stream, whole and in chunks; errors of the forecasts within the last four."""
        names, values = corpus.series()
        at_once = sensing.by_forward(bundle, [values])
        streamed = sensing.by_step(bundle, [values], most=300)
        error, absolute = self._errors(streamed[0][1], JUDGED)
        whole_error, _ = self._errors(at_once[0][1], JUDGED)
        stopped, _ = self._errors(streamed[0][1], STOPPED)
        at = corpus.origins(JUDGED, self.recipe.horizon)
        daily = values[at[:, None] + np.arange(1, self.recipe.horizon + 1) - DAY]
        came = corpus.following(values, at, self.recipe.horizon)
        naive = corpus.standardised(daily) - corpus.standardised(came)
        return {
            "forecasts": len(at),
            "mse": float(error.mean()),
            "mse_whole": float(whole_error.mean()),
            "mae": float(absolute.mean()),
            "same": sensing.same(at_once, streamed),
            "mse_validation": float(stopped.mean()),
            "mse_day_before": float(np.square(naive, dtype=np.float64).mean()),
            "mse_by_series": dict(zip(names, error.mean(axis=(0, 1)).round(4).tolist(), strict=True)),
            "mse_by_hour": error.mean(axis=(0, 2)).round(4).tolist(),
        }

    def report(self, net: Net, folder: Path) -> dict[str, Any]:
        """Forecasts of some test days beside what came: a picture."""
        frames, _ = self._frontend.step(self._values[None], self._frontend.initial_state(1))
        plot_forecasts(self._values, whole(net, torch.from_numpy(frames))[0].numpy(), folder / "forecasts.png")
        return {}

    def data_sha256(self) -> str:
        return sensing.sha256([corpus.file()], corpus.file().parent)


def plot_forecasts(values: Array, told: Array, path: Path, days: int = 10, first: int = 40) -> None:
    """Ten test days of every series: what came, and what was foretold at each midnight."""
    names = corpus.series()[0]
    start = JUDGED[0] + first * DAY
    shown = np.arange(start, start + days * DAY)
    figure, axes = plt.subplots(len(names), 1, figsize=(10, 1.5 * len(names)), sharex=True)
    for n, (name, axis) in enumerate(zip(names, axes, strict=True)):
        axis.plot((shown - start) / DAY, values[shown, n], color="black", linewidth=0.9, label="came")
        for day in range(days):
            at = start + day * DAY - 1
            hours = np.arange(at + 1, at + 1 + DAY)
            foretold = told[at].reshape(-1, len(names))[:DAY, n]
            axis.plot((hours - start) / DAY, foretold, color="C1", linewidth=1.2, label="foretold" if not day else None)
            axis.axvline(day, color="grey", linewidth=0.4)
        axis.set(ylabel=name)
    axes[0].legend(loc="upper right", ncols=2)
    axes[-1].set(xlabel="days of the test months; a forecast of 24 h at each line")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def task(recipe: Forecast = RECIPE) -> ForecastTask:
    """The task under a recipe."""
    return ForecastTask(recipe)
