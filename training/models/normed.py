"""A linear map and the batch normalisation behind it, which is a linear map too once training is over.

z = W u + b                                                 y = gamma * (z - m) / sqrt(v + eps) + beta
  = W' u + b'      with  W' = gamma / sqrt(v + eps) * W     b' = gamma / sqrt(v + eps) * (b - m) + beta

In training m and v are those of the segment's frames; at inference the running means, so no frame looks at another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NormedLinear(nn.Module):
    """`[..., I]` to `[..., O]`: a linear map, then batch normalisation over all leading axes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, u: Tensor) -> Tensor:
        """One matrix product at inference, as in the graph."""
        if not self.training:
            weight, bias = self.folded()
            return nn.functional.linear(u, weight, bias)
        z: Tensor = self.linear(u)
        normed: Tensor = self.norm(z.flatten(0, -2))
        return normed.reshape(z.shape)

    def folded(self) -> tuple[Tensor, Tensor]:
        """W' `[O, I]` and b' `[O]`."""
        return fold(self.linear.weight, self.norm)


def fold(weight: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights `[O, ...]` without bias, and the normalisation behind them, as weights `[O, ...]` and bias `[O]`."""
    gain = norm.weight * torch.rsqrt(norm.get_buffer("running_var") + norm.eps)
    return weight * gain.reshape(-1, *[1] * (weight.ndim - 1)), norm.bias - norm.get_buffer("running_mean") * gain
