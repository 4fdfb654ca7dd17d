"""LSTMs that torch has no fused kernel for: a loop over frames, one addition and one product a gate and a frame.

What a layer stacks as W, R and b, and what it makes of the sums a = W x_t + R h_(t-1) + b, is the subclasses' matter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.models.encoder import Dropouts, Encoder, State

if TYPE_CHECKING:
    from training.graph import GraphBuilder


class Layer(nn.Module):
    """Weights `[gates * H, I]`, `[gates * H, H]`, `[gates * H]`, and the textbook's step."""

    gates: ClassVar[int]

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(hidden)
        self.hidden = hidden
        self.W = nn.Parameter(torch.empty(self.gates * hidden, inputs).uniform_(-bound, bound))
        self.R = nn.Parameter(torch.empty(self.gates * hidden, hidden).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(self.gates * hidden).uniform_(-bound, bound))

    def step(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Sums `[B, gates * H]` and c_(t-1) `[B, H]` to h_t and c_t."""
        raise NotImplementedError

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, I]`, h and c `[B, H]` to (`[B, T, H]`, hn, cn)."""
        ys = []
        for z in nn.functional.linear(x, self.W, self.b).unbind(dim=1):
            h, c = self.step(torch.addmm(z, h, self.R.T), c)
            ys.append(h)
        return torch.stack(ys, dim=1), h, c

    def exported(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """W `[4H, I]`, R `[4H, H]` and b `[4H]` in ONNX's order of gates, i, o, f, c."""
        w, r, b = (v.detach().cpu().numpy() for v in (self.W, self.R, self.b))
        return w, r, b

    def peepholes(self) -> NDArray[np.float32] | None:
        """`[3H]` in ONNX's order, p_i, p_o, p_f; None: there are none."""
        return None


class Looped(Encoder):
    """L layers of H units; states h and c `[L, B, H]`. Exported as ONNX LSTM."""

    layer: ClassVar[type[Layer]]
    attributes: ClassVar[dict[str, Any]] = {}

    def __init__(self, inputs: int, layers: int, hidden: int, dropouts: Dropouts) -> None:
        super().__init__(inputs, dropouts)
        self.outputs = hidden
        self.cells = nn.ModuleList(self.layer(size, hidden) for size in [inputs] + [hidden] * (layers - 1))
        self.states = tuple(State(name, (layers, 1, hidden), 1) for name in ("h", "c"))

    def run(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`[B, T, I]`, h and c `[L, B, H]` to (`[B, T, H]`, hn, cn)."""
        h, c = state
        hn, cn = [], []
        for n, cell in enumerate(self.cells):
            x, h_n, c_n = cell(x if n == 0 else self.drop_between(x), h[n], c[n])
            hn.append(h_n)
            cn.append(c_n)
        return x, torch.stack(hn), torch.stack(cn)

    def nodes(self, g: GraphBuilder, x: str) -> str:
        """One operator a layer, time first; all of the bias is ONNX's Wb, and Rb is zero."""
        layers = len(self.cells)
        h, c = (g.split(g.state(name), layers, axis=0) for name in ("h", "c"))
        y = g.op("Transpose", x, perm=[1, 0, 2])
        hn, cn = [], []
        for n, cell in enumerate(self.cells):
            assert isinstance(cell, Layer)
            w, r, b = cell.exported()
            y, h_n, c_n = g.recurrent(
                "LSTM", y, w, r, np.concatenate([b, np.zeros_like(b)]), [h[n], c[n]], cell.peepholes(),
                **self.attributes,
            )  # fmt: skip
            hn.append(h_n)
            cn.append(c_n)
        g.carry("h", g.op("Concat", *hn, axis=0))
        g.carry("c", g.op("Concat", *cn, axis=0))
        return g.op("Transpose", y, perm=[1, 0, 2])
