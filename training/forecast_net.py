"""The next H values of S series: a line over the last W of each, which all series share, and what a memory adds to it.

z[t] = (x[t] - m) / s                                           m, s: of the training months
u[t, k] = z[t - k] - z[t] where x[t - k] was seen, else 0          k < W; unseen: before the stream, or a gap of zeros
l[t, j] = z[t] + sum over k < W of A[j, k] u[t, k] + a[j]           as NLinear (arXiv 2205.13504), all series alike
y[t, j] = s (l[t, j] + (W_y h[t] + b_y)[j]) + m                     h: an encoder's, fed z[t]; carried for ever

A and W_y begin as zeros: the forecast then is the last value, and all else is learnt from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.models import Encoder, Net, Standardise
from training.models.encoder import Dropout

if TYPE_CHECKING:
    from training.graph import GraphBuilder


class ForecastNet(Net):
    """Windows `[B, T, W * S]`, the newest sample last, and state to `[B, T, H * S]` in the series' units, and state.

    `logits` are the same in units of the training months' deviation, so that series weigh alike in a loss.
    """

    unit_mean: Tensor
    unit_scale: Tensor

    def __init__(self, encoder: Encoder, window: int, series: int, horizon: int, dropout: float = 0.0) -> None:
        super().__init__(Standardise(window * series), encoder, horizon * series, activation="identity")
        self.window, self.series, self.horizon = window, series, horizon
        self.line = nn.Linear(window, horizon)
        self.drop_line = Dropout(dropout)
        self.register_buffer("unit_mean", torch.zeros(horizon * series))
        self.register_buffer("unit_scale", torch.ones(horizon * series))
        for part in (self.line, self.readout):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Fix m and s by `[N, S]` of the training months; s is of all of them (no N - 1), as the benchmark has it."""
        mean, scale = values.mean(dim=0), values.std(dim=0, correction=0)
        self.front.mean.copy_(mean.repeat(self.window))
        self.front.scale.copy_((1 / scale).repeat(self.window))
        self.unit_mean.copy_(mean.repeat(self.horizon))
        self.unit_scale.copy_(scale.repeat(self.horizon))

    def logits_of(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Windows and state to (`[B, T, H * S]` standardised, state)."""
        z = self.front.standardised(features)
        last = z[..., -self.series :]
        y, *after = self.encoder(last, *state)
        shape = (*z.shape[:2], self.window, self.series)
        newest = last[..., None, :]
        seen = features.reshape(shape).abs().sum(dim=-1, keepdim=True).sign()
        within = ((z.reshape(shape) - newest) * seen).transpose(-1, -2)  # [B, T, S, W]
        line = self.line(self.drop_line(within.flatten(1, 2)).reshape(within.shape))
        told = line.transpose(-1, -2) + newest
        return (self.readout(y) + told.flatten(-2), *after)

    def scores(self, logits: Tensor) -> Tensor:
        """Standardised to the series' own units."""
        return logits * self.unit_scale + self.unit_mean

    @torch.no_grad()
    def nodes(self, g: GraphBuilder, x: str) -> str:
        """Append the operators of `forward`."""
        z = self.front.nodes(g, x)
        last = g.cut(z, -self.series, None, axis=2)
        y = g.linear(self.encoder.nodes(g, last), self.readout.weight, self.readout.bias)
        windows = g.integers(0, -1, self.window, self.series)
        newest = g.op("Reshape", last, g.integers(0, -1, 1, self.series))
        sizes = g.op("ReduceSum", g.op("Abs", g.op("Reshape", x, windows)), g.integers(3), keepdims=1)
        within = g.op("Mul", g.op("Sub", g.op("Reshape", z, windows), newest), g.op("Sign", sizes))
        line = g.linear(g.op("Transpose", within, perm=[0, 1, 3, 2]), self.line.weight, self.line.bias)
        told = g.op("Add", g.op("Transpose", line, perm=[0, 1, 3, 2]), newest)
        y = g.op("Add", y, g.op("Reshape", told, g.integers(0, -1, self.classes)))
        scaled = g.op("Mul", y, g.constant(self.unit_scale, "unit_scale"))
        return g.op("Add", scaled, g.constant(self.unit_mean, "unit_mean"))
