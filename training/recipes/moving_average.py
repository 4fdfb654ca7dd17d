"""The moving average of a random signal: what carried state is good for, in its smallest form.

The input is noise, uniform in -1..1; the target the mean of its last `tsteps` samples. In training a net sees `lahead`
samples at a time and answers at the last of them. Two nets see the very same batches and differ in one thing: the one
goes on with the state of the segment before (`carry`), the other begins every segment with zeros.

A net that sees only `lahead` of `tsteps` samples cannot know the others, whatever it learns: of the target's variance a
share of 1 - lahead / tsteps stays unexplained. So with lahead < tsteps only the net that carries its state converges,
though its gradients end where a segment begins; with lahead >= tsteps both do. (Keras showed this as its "stateful
LSTM" example; there with a window of 2 and segments of 1.)

Cost: about 20 s each, one core. Expected, with tsteps 3 and lahead 1: 4 % of the variance left unexplained where state
is carried (2 to 12 % over nine runs of other seeds, sizes and rates: no gradient crosses a frame there), at least 67 %
where it is not.
`python -m training.memory moving_average` trains all; `training/metrics/moving_average.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.losses import squared_error
from training.models import Net, Standardise
from training.recipe import Recipe
from training.task import Batch, Task, encoder_of

VARIANCE = 1.0 / 3.0
"""Of a sample, uniform in -1..1."""


@dataclass(frozen=True)
class MovingAverage(Recipe):
    """tsteps: samples in the mean. lahead: samples that a net sees at a time. carry: it goes on with its state.

    judged_samples: of a validation stream; there are 16.
    """

    name: str = "moving_average"
    tsteps: int = 3
    lahead: int = 1
    carry: bool = True
    judged_samples: int = 256

    @property
    def floor(self) -> float:
        """The share of the target's variance that no net can explain that sees `lahead` samples and no state."""
        return 0.0 if self.carry else max(0.0, 1.0 - self.lahead / self.tsteps)


RECIPE = MovingAverage(cell="lstm", hidden=96, passes=40, batches=150, streams=32, learning_rate=1e-2)
TINY = {"tsteps": "2", "hidden": "32", "passes": "4", "batches": "75", "learning_rate": "3e-2"}


class MovingAverageTask(Task[MovingAverage]):
    """A batch is one segment of `lahead` samples of each stream; the context is the samples before it."""

    def build(self) -> Net:
        r = self.recipe
        return Net(Standardise(1), encoder_of(r, 1), 1, activation="identity")

    def batch(self, index: int, context: Any) -> tuple[Batch, Any]:
        r = self.recipe
        x = np.random.default_rng((r.seed, index)).uniform(-1.0, 1.0, (r.streams, r.lahead)).astype(np.float32)
        before = np.zeros((r.streams, r.tsteps - 1), np.float32) if context is None else context
        signal = np.concatenate([before, x], axis=1)
        fresh = torch.full((r.streams,), context is None or not r.carry)
        weight = torch.zeros(r.streams, r.lahead)
        weight[:, -1] = 1.0
        target = {"mean": torch.from_numpy(averages(signal, r.tsteps))[:, :, None]}
        after = signal[:, signal.shape[1] - r.tsteps + 1 :]
        return Batch(torch.from_numpy(x)[:, :, None], target, weight, fresh), after

    def loss(self, logits: Tensor, target: dict[str, Tensor], weight: Tensor) -> Tensor:
        return squared_error(logits, target["mean"], weight)

    def validate(self, net: Net) -> dict[str, float]:
        """loss: mean squared error as in training; unexplained: that, as a share of the target's variance."""
        said, wanted = self.answers(net)
        error = float((said - wanted).square().mean())
        return {"loss": error, "unexplained": error * self.recipe.tsteps / VARIANCE}

    def answers(self, net: Net) -> tuple[Tensor, Tensor]:
        """(what the net says, what is right), `[16, n]` each, of streams that no batch has.

        Carrying: at every sample of a stream that goes on. Else: at the last sample of every window of `lahead`.
        """
        r = self.recipe
        x = np.random.default_rng((r.seed, 2**31)).uniform(-1.0, 1.0, (16, r.judged_samples)).astype(np.float32)
        skipped = max(r.tsteps, r.lahead) - 1
        wanted = torch.from_numpy(averages(x, r.tsteps))[:, skipped - r.tsteps + 1 :]
        signal = torch.from_numpy(x).to(next(net.parameters()).device)
        if r.carry:
            said = net(signal[:, :, None], *net.initial_state(len(x)))[0][:, skipped:, 0]
        else:
            windows = signal.unfold(1, r.lahead, 1)[:, skipped - r.lahead + 1 :]  # [16, n, lahead]
            rows = windows.reshape(-1, r.lahead, 1)
            said = net(rows, *net.initial_state(len(rows)))[0][:, -1, 0].reshape(windows.shape[:2])
        return said.cpu(), wanted


def averages(signal: np.ndarray[Any, np.dtype[np.float32]], tsteps: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`[B, n + tsteps - 1]` to `[B, n]`: the mean of the last `tsteps` samples."""
    windows = np.lib.stride_tricks.sliding_window_view(signal, tsteps, axis=1)
    return np.asarray(windows.mean(axis=2, dtype=np.float32))


def task(recipe: MovingAverage = RECIPE) -> MovingAverageTask:
    """The task under a recipe."""
    return MovingAverageTask(recipe)
