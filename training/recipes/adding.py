"""The adding problem: T frames of a random number and a marker; two are marked, and the last frame wants their sum.

Hochreiter and Schmidhuber (1997), section 5.4, in the form of Le et al. (arXiv 1504.00941): numbers uniform in 0..1,
one marker in each half. Who always says 1 has a mean squared error of 1/6 = 0.167: that is the baseline; below 0.01 the
problem counts as solved. Nothing but memory is asked: the first number lies up to T frames back.

Cost: 500 batches of 50 sequences (800 for T = 600), one core: LSTM 9 to 45 s, GRU 28 to 120 s, simple RNN 10 to 40 s.
Expected: LSTM and GRU below 0.01 for T = 200, 400 and 600, simple RNN at 0.167.
`python -m training.memory adding` trains them all, with and without clipping; `training/metrics/adding.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.long_memory import chrono, widen_inputs
from training.losses import squared_error
from training.models import Net, Standardise
from training.recipe import Recipe
from training.task import Batch, Task, encoder_of, whole

BASELINE = 1.0 / 6.0
"""The variance of the sum of two numbers uniform in 0..1."""

SOLVED = 0.01
"""A mean squared error under which the problem counts as solved."""


@dataclass(frozen=True)
class Adding(Recipe):
    """frames: T. input_deviation: of the first input weights. judged: sequences of a validation."""

    name: str = "adding"
    frames: int = 200
    input_deviation: float = 1.0
    judged: int = 500


RECIPE = Adding(cell="gru", hidden=32, passes=25, batches=20, streams=50, learning_rate=1e-2)
TINY = {"frames": "12", "hidden": "16", "passes": "6", "batches": "25", "streams": "32", "learning_rate": "2e-2"}


class AddingTask(Task[Adding]):
    """Every sequence is drawn from (seed, batch), so none is ever seen twice."""

    def build(self) -> Net:
        r = self.recipe
        net = Net(Standardise(2), encoder_of(r, 2), 1, activation="identity")
        widen_inputs(net, r.input_deviation)
        chrono(net, r.frames)
        return net

    def batch(self, index: int, context: Any) -> tuple[Batch, Any]:
        x, total = sequences(np.random.default_rng((self.recipe.seed, index)), self.recipe.streams, self.recipe.frames)
        target = total[:, None, None].expand(-1, self.recipe.frames, 1)
        weight = torch.zeros(x.shape[:2])
        weight[:, -1] = 1.0
        return Batch(x, {"sum": target}, weight, torch.ones(len(x), dtype=torch.bool)), None

    def loss(self, logits: Tensor, target: dict[str, Tensor], weight: Tensor) -> Tensor:
        return squared_error(logits, target["sum"], weight)

    def validate(self, net: Net) -> dict[str, float]:
        """loss: mean squared error; guessing_loss: of always saying 1, on the same sequences (1/6 but for chance)."""
        x, total = sequences(np.random.default_rng((self.recipe.seed, 2**31)), self.recipe.judged, self.recipe.frames)
        error = float((whole(net, x)[:, -1, 0] - total).square().mean())
        return {"loss": error, "guessing_loss": float((total - 1.0).square().mean())}


def sequences(rng: np.random.Generator, count: int, frames: int) -> tuple[Tensor, Tensor]:
    """(`[count, frames, 2]` numbers and markers, `[count]` the sum of the marked ones)."""
    number = rng.random((count, frames), np.float32)
    marker = np.zeros((count, frames), np.float32)
    rows = np.arange(count)
    marker[rows, rng.integers(0, frames // 2, count)] = 1.0
    marker[rows, rng.integers(frames // 2, frames, count)] = 1.0
    x = torch.from_numpy(np.stack([number, marker], axis=2))
    return x, torch.from_numpy((number * marker).sum(axis=1))


def task(recipe: Adding = RECIPE) -> AddingTask:
    """The task under a recipe."""
    return AddingTask(recipe)
