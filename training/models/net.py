"""A whole model: a front of constants, an encoder that remembers, a linear readout, an activation.

x -> front -> encoder (state) -> W_y y + b_y -> softmax, sigmoid or nothing -> fold

`fold` `[C', C]` maps the C' classes that are learnt to the C that are told: auxiliary classes add up to background.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from training.models.encoder import Encoder, State
from training.models.front import Front

if TYPE_CHECKING:
    from training.graph import GraphBuilder

Activation = Literal["softmax", "sigmoid", "identity"]


class Net(nn.Module):
    """Frames `[B, T, F]` and state to scores `[B, T, C]` and state, as the exported graph does it.

    T is any multiple of `block`; rows of the scores trail by `latency` frames.
    """

    fold: Tensor | None

    def __init__(
        self,
        front: Front,
        encoder: Encoder,
        learnt: int,
        *,
        activation: Activation = "softmax",
        fold: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.front, self.encoder = front, encoder
        self.readout = nn.Linear(encoder.outputs, learnt)
        self.activation: Activation = activation
        self.classes = learnt if fold is None else fold.shape[1]
        self.register_buffer("fold", fold)

    @property
    def block(self) -> int:
        """Frames that one step consumes."""
        return self.encoder.block

    @property
    def latency(self) -> int:
        """Frames by which the scores trail."""
        return self.encoder.latency

    @property
    def frames(self) -> int:
        """F, the width of what comes in."""
        return self.front.frames

    @property
    def learnt(self) -> int:
        """C', the classes that are learnt."""
        return self.readout.out_features

    @property
    def one_block(self) -> bool:
        """Whether a call of the exported graph takes exactly one block."""
        return self.encoder.one_block

    @property
    def kind(self) -> str:
        """The architecture's name, as its class has it."""
        return type(self.encoder).__name__.lower()

    @property
    def states(self) -> tuple[State, ...]:
        """What is carried, in the order in which it is passed."""
        return self.encoder.states

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """What a stream begins with, on the device of the weights."""
        return self.encoder.initial_state(batch)

    def features(self, x: Tensor) -> Tensor:
        """Frames `[B, T, F]` to features `[B, T, M]`, which training may mask or warp."""
        return self.front.features(x)

    def logits_of(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Features `[B, T, M]` and state to (logits `[B, T, C']`, state)."""
        y, *after = self.encoder(self.front.standardised(features), *state)
        return (self.readout(y), *after)

    def logits(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Frames `[B, T, F]` and state to (logits `[B, T, C']`, state)."""
        return self.logits_of(self.features(x), *state)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Frames `[B, T, F]` and state to (scores `[B, T, C]`, state)."""
        logits, *after = self.logits(x, *state)
        return (self.scores(logits), *after)

    def scores(self, logits: Tensor) -> Tensor:
        """Logits `[B, T, C']` to scores `[B, T, C]`: the activation, then the fold."""
        if self.activation == "softmax":
            logits = logits.softmax(dim=-1)
        elif self.activation == "sigmoid":
            logits = logits.sigmoid()
        return logits if self.fold is None else logits @ self.fold

    @property
    def parameter_count(self) -> int:
        """Numbers that are learnt."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def nodes(self, g: GraphBuilder, x: str) -> str:
        """Append the operators of `forward`."""
        return self.score_nodes(g, self.logit_nodes(g, x))

    @torch.no_grad()
    def logit_nodes(self, g: GraphBuilder, x: str) -> str:
        """Append the operators of `logits`."""
        y = self.encoder.nodes(g, self.front.nodes(g, x))
        return g.linear(y, self.readout.weight, self.readout.bias)

    @torch.no_grad()
    def score_nodes(self, g: GraphBuilder, y: str) -> str:
        """Append the operators of `scores`."""
        if self.activation == "softmax":
            y = g.op("Softmax", y, axis=-1)
        elif self.activation == "sigmoid":
            y = g.op("Sigmoid", y)
        return y if self.fold is None else g.op("MatMul", y, g.constant(self.fold, "fold"))
