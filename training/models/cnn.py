"""A causal convolutional network: depthwise-separable, dilated, residual (as TCN, arXiv 1803.01271; MatchboxNet).

u_0 = relu(N(W_0 x))                                        N: batch normalisation, folded into W when exported
d_l[t] = sum over j < K of w_l[j] * u_(l-1)[t - (K - 1 - j) * D_l]      one filter a channel, D_l = 1, 2, 4, ...
u_l = u_(l-1) + relu(N(W_l d_l))                            y = u_L

Its memory is the left context, (K - 1) * D_l frames of each layer's input, zeros before the stream: it ends after
`receptive_frames`, exactly.

Exported, the filters are shifted multiply-adds and the rest MatMul: both exact over batches and cuts, while
onnxruntime's Conv is not where it yields a single frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.models.encoder import Dropouts, Encoder, State
from training.models.normed import NormedLinear

if TYPE_CHECKING:
    from training.graph import GraphBuilder


class CNN(Encoder):
    """L layers of H channels over I inputs; states past_l `[B, (K - 1) * D_l, H]`.

    taps: K. dilations: D_l, repeated from the first again when there are more layers than dilations.
    """

    def __init__(
        self,
        inputs: int,
        layers: int,
        hidden: int,
        dropouts: Dropouts,
        *,
        taps: int = 5,
        dilations: tuple[int, ...] = (1, 2, 4, 8),
    ) -> None:
        super().__init__(inputs, dropouts)
        self.outputs, self.taps = hidden, taps
        self.dilations = [dilations[n % len(dilations)] for n in range(layers)]
        self.stem = NormedLinear(inputs, hidden)
        self.filters = nn.ModuleList(
            nn.Conv1d(hidden, hidden, taps, dilation=d, groups=hidden, bias=False) for d in self.dilations
        )
        self.mixers = nn.ModuleList(NormedLinear(hidden, hidden) for _ in range(layers))
        self.states = tuple(State(f"past_{n}", (1, (taps - 1) * d, hidden), 0) for n, d in enumerate(self.dilations))

    @property
    def receptive_frames(self) -> int:
        """The last frames, the newest included, on which an output depends."""
        return 1 + sum((self.taps - 1) * d for d in self.dilations)

    def _layers(self) -> list[tuple[nn.Conv1d, NormedLinear]]:
        pairs = zip(self.filters, self.mixers, strict=True)
        return [(f, m) for f, m in pairs if isinstance(f, nn.Conv1d) and isinstance(m, NormedLinear)]

    def run(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`[B, T, I]` and the left contexts to (`[B, T, H]`, left contexts)."""
        u: Tensor = self.stem(x).relu()
        after: list[Tensor] = []
        for past, (filters, mixer) in zip(state, self._layers(), strict=True):
            wide = torch.cat([past, u if not after else self.drop_between(u)], dim=1)
            after.append(wide[:, wide.shape[1] - past.shape[1] :])
            u = u + mixer(filters(wide.transpose(1, 2)).transpose(1, 2)).relu()
        return (u, *after)

    def nodes(self, g: GraphBuilder, x: str) -> str:
        """MatMul and Relu; Concat, Slice, Mul and Add a layer."""
        u = g.op("Relu", g.linear(x, *self.stem.folded()))
        for state, (filters, mixer) in zip(self.states, self._layers(), strict=True):
            wide = g.op("Concat", g.state(state.name), u, axis=1)
            g.carry(state.name, g.cut(wide, -state.shape[1], None, axis=1))
            d = self._filtered(g, wide, filters, state.shape[1])
            u = g.op("Add", u, g.op("Relu", g.linear(d, *mixer.folded())))
        return u

    def _filtered(self, g: GraphBuilder, wide: str, filters: nn.Conv1d, past: int) -> str:
        """`[B, P + T, H]` to `[B, T, H]`: the K shifted copies, each by its tap, added from the oldest on."""
        weight = filters.weight[:, 0]
        total = ""
        for j in range(self.taps):
            start = j * (past // (self.taps - 1))
            shifted = g.cut(wide, start, start - past or None, axis=1)
            term = g.op("Mul", shifted, g.constant(weight[:, j], "w"))
            total = g.op("Add", total, term) if total else term
        return total
