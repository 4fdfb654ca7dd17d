"""Several nets that hear the same frames, and the mean of what they say.

y = (y_0 + y_1 + ...) / N, each of them with its own state: they err differently, and what one takes for a word by
mistake the others seldom take for the same.
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
    """Frames `[B, T, F]` and all states to the mean of the scores `[B, T, C]` and all states.

    The states of net n are called as they are there, `n<n>_` before it. Raises ConfigError: nets of unlike frames,
    classes, blocks or latencies.
    """

    def __init__(self, nets: Sequence[Net]) -> None:
        super().__init__()
        first = nets[0]
        for net in nets:
            unlike = [
                f"{name} {getattr(net, name)} and {getattr(first, name)}"
                for name in ("frames", "classes", "block", "latency", "one_block")
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
        """The nets in order, then their mean."""
        scores: list[Tensor] = []
        after: list[Tensor] = []
        for net in self._each():
            begin = len(after)
            y, *kept = net(x, *state[begin : begin + len(net.states)])
            scores.append(y)
            after += kept
        total = scores[0]
        for y in scores[1:]:
            total = total + y
        return (total * (1.0 / len(scores)), *after)

    @torch.no_grad()
    def nodes(self, g: GraphBuilder, x: str) -> str:
        """Append the operators of `forward`."""
        said = []
        for n, net in enumerate(self._each()):
            with g.member(f"n{n}_"):
                said.append(net.nodes(g, x))
        total = said[0]
        for y in said[1:]:
            total = g.op("Add", total, y)
        return g.op("Mul", total, g.constant(np.array(1.0 / len(said), np.float32), "share"))
