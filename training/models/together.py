"""Several nets that hear the same frames, and what they say together: a product of experts (Hinton 2002).

y = scores((z_0 + z_1 + ...) / N) of their logits z, each net with its own state. With softmax that is the geometric
mean of their probabilities, made to add up to one: they err differently, and where one of them is sure that something
is no word, the others' mistake does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from training.models.encoder import State
from training.models.net import Net

if TYPE_CHECKING:
    from training.graph import GraphBuilder


class Together(nn.Module):
    """Frames `[B, T, F]` and all states to scores `[B, T, C]` and all states; activation and fold are the first net's.

    The states of net n are called as they are there, `n<n>_` before it. Raises ConfigError: nets of unlike frames,
    classes (learnt or told), activations, blocks or latencies.
    """

    def __init__(self, nets: Sequence[Net]) -> None:
        super().__init__()
        first = nets[0]
        for net in nets:
            unlike = [
                f"{name} {getattr(net, name)} and {getattr(first, name)}"
                for name in ("frames", "learnt", "classes", "activation", "block", "latency", "one_block")
                if getattr(net, name) != getattr(first, name)
            ]
            if unlike:
                raise ConfigError(f"these nets cannot answer together: {', '.join(unlike)}")
        self.nets = nn.ModuleList(nets)
        self.frames, self.classes, self.one_block = first.frames, first.classes, first.one_block
        self.block, self.latency = first.block, first.latency
        self.kind = "_".join(net.kind for net in nets)

    def _each(self) -> list[Net]:
        return [net for net in self.nets if isinstance(net, Net)]

    @property
    def states(self) -> tuple[State, ...]:
        """What is carried, net by net."""
        every = enumerate(self._each())
        return tuple(replace(state, name=f"n{n}_{state.name}") for n, net in every for state in net.states)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """What a stream begins with."""
        return tuple(state for net in self._each() for state in net.initial_state(batch))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The nets in order, then what they say together."""
        logits: list[Tensor] = []
        after: list[Tensor] = []
        for net in self._each():
            begin = len(after)
            z, *kept = net.logits(x, *state[begin : begin + len(net.states)])
            logits.append(z)
            after += kept
        total = logits[0]
        for z in logits[1:]:
            total = total + z
        return (self._each()[0].scores(total * (1.0 / len(logits))), *after)

    @torch.no_grad()
    def nodes(self, g: GraphBuilder, x: str) -> str:
        """Append the operators of `forward`."""
        logits = []
        for n, net in enumerate(self._each()):
            with g.member(f"n{n}_"):
                logits.append(net.logit_nodes(g, x))
        total = logits[0]
        for z in logits[1:]:
            total = g.op("Add", total, z)
        share = g.constant(np.array(1.0 / len(logits), np.float32), "share")
        return self._each()[0].score_nodes(g, g.op("Mul", total, share))
