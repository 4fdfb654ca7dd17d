"""Copy memory: ten symbols, a long silence, a sign; then the ten symbols are to be said again, in order.

Hochreiter and Schmidhuber (1997) in the form of Arjovsky et al. (arXiv 1511.06464): S symbols out of K, then `delay`
frames of blanks, the last of which is the sign, then S frames in which they are due. Who remembers nothing guesses each
of them: ln K = 2.08 nats and 1 of 8 right. Unlike in the adding problem, all of the state is needed at once.

Cost: 1200 batches of 50 sequences, one core: LSTM about one minute, GRU two or three, simple RNN half a minute.
Expected: LSTM and GRU say more than nine of ten right, the simple RNN guesses.
`python -m training.memory copying` trains them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.long_memory import chrono, widen_inputs
from training.losses import cross_entropy
from training.models import Net, Standardise
from training.recipe import Recipe
from training.task import Batch, Task, encoder_of, whole

SYMBOLS = 8
"""K; class K is the blank, and input K + 1 the sign."""

BASELINE = math.log(SYMBOLS)
"""Nats a symbol, guessing."""


@dataclass(frozen=True)
class Copying(Recipe):
    """delay: frames between the last symbol and the first frame that is due. length: S. blank_weight: how much the loss
    of a frame counts in which the net is to say blank. judged: sequences of a validation."""

    name: str = "copying"
    delay: int = 100
    length: int = 10
    blank_weight: float = 0.05
    input_deviation: float = 3.0
    judged: int = 250

    @property
    def frames(self) -> int:
        """Of a sequence."""
        return self.delay + 2 * self.length


RECIPE = Copying(cell="lstm", hidden=128, passes=60, batches=20, streams=50, learning_rate=2e-2)
TINY = {"delay": "5", "length": "3", "hidden": "32", "passes": "5", "batches": "25", "learning_rate": "2e-2"}


class CopyingTask(Task[Copying]):
    """Every sequence is drawn from (seed, batch), so none is ever seen twice."""

    def build(self) -> Net:
        r = self.recipe
        net = Net(Standardise(SYMBOLS + 2), encoder_of(r, SYMBOLS + 2), SYMBOLS + 1)
        widen_inputs(net, r.input_deviation)
        chrono(net, r.frames)
        return net

    def batch(self, index: int, context: Any) -> tuple[Batch, Any]:
        r = self.recipe
        x, label = sequences(np.random.default_rng((r.seed, index)), r.streams, r)
        weight = torch.full(label.shape, r.blank_weight)
        weight[:, -r.length :] = 1.0
        return Batch(x, {"label": label}, weight, torch.ones(len(x), dtype=torch.bool)), None

    def loss(self, logits: Tensor, target: dict[str, Tensor], weight: Tensor) -> Tensor:
        return cross_entropy(logits, target["label"], weight)

    def validate(self, net: Net) -> dict[str, float]:
        """loss: nats a symbol; right: share of the symbols said right; silent: of the blanks."""
        r = self.recipe
        x, label = sequences(np.random.default_rng((r.seed, 2**31)), r.judged, r)
        p = whole(net, x)
        said, due = p.argmax(dim=-1) == label, slice(-r.length, None)
        nats = -p[:, due].gather(-1, label[:, due, None]).clamp_min(1e-9).log().mean()
        silent = said[:, : -r.length].float().mean()
        return {"loss": float(nats), "right": float(said[:, due].float().mean()), "silent": float(silent)}


def sequences(rng: np.random.Generator, count: int, recipe: Copying) -> tuple[Tensor, Tensor]:
    """(`[count, T, K + 2]` one-hot, `[count, T]` what is to be said)."""
    said = rng.integers(0, SYMBOLS, (count, recipe.length))
    heard = np.full((count, recipe.frames), SYMBOLS)
    heard[:, : recipe.length] = said
    heard[:, recipe.length + recipe.delay - 1] = SYMBOLS + 1
    due = np.full((count, recipe.frames), SYMBOLS)
    due[:, -recipe.length :] = said
    x = torch.nn.functional.one_hot(torch.from_numpy(heard), SYMBOLS + 2).to(torch.float32)
    return x, torch.from_numpy(due)


def task(recipe: Copying = RECIPE) -> CopyingTask:
    """The task under a recipe."""
    return CopyingTask(recipe)
