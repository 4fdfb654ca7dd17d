"""Layers of a recurrent cell that both torch and ONNX know as one operator: what RNN, LSTM and GRU have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.models.encoder import Dropouts, Encoder, State

if TYPE_CHECKING:
    from training.graph import GraphBuilder


class Recurrent(Encoder):
    """L layers of H units. States `[L, B, H]`, named by `carried`; torch's fused kernel runs each layer.

    `order`: where torch keeps the gates that ONNX wants first, second, ... in its stacked weights. `company`: the graph
    adds a silent stream to every call, because onnxruntime runs a lone one through another kernel.
    """

    operator: ClassVar[str]
    layer: ClassVar[type[nn.RNN | nn.LSTM | nn.GRU]]
    carried: ClassVar[tuple[str, ...]]
    order: ClassVar[tuple[int, ...]]
    attributes: ClassVar[dict[str, Any]] = {}
    company: ClassVar[bool] = False

    def __init__(self, inputs: int, layers: int, hidden: int, dropouts: Dropouts) -> None:
        super().__init__(inputs, dropouts)
        self.outputs = self.hidden = hidden
        sizes = [inputs] + [hidden] * (layers - 1)
        self.cells = nn.ModuleList(self.layer(size, hidden, batch_first=True) for size in sizes)
        self.states = tuple(State(name, (layers, 1, hidden), 1) for name in self.carried)

    def run(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`[B, T, I]` and h (and c) `[L, B, H]` to (`[B, T, H]`, hn (and cn))."""
        after = []
        for n, cell in enumerate(self.cells):
            carried = tuple(s[n : n + 1].contiguous() for s in state)
            x, done = cell(x if n == 0 else self.drop_between(x), carried if len(carried) > 1 else carried[0])
            after.append(done if len(carried) > 1 else (done,))
        return (x, *(torch.cat(parts) for parts in zip(*after, strict=True)))

    def nodes(self, g: GraphBuilder, x: str) -> str:
        """One operator a layer, time first."""
        layers = len(self.cells)
        before = [g.split(self._joined(g, g.state(name)), layers, axis=0) for name in self.carried]
        after: list[list[str]] = [[] for _ in self.carried]
        y = self._joined(g, g.op("Transpose", x, perm=[1, 0, 2]))
        for n, cell in enumerate(self.cells):
            w = {name: value.detach().cpu().numpy() for name, value in cell.named_parameters()}
            bias = np.concatenate([self.reordered(w["bias_ih_l0"]), self.reordered(w["bias_hh_l0"])])
            y, *done = g.recurrent(
                self.operator, y, self.reordered(w["weight_ih_l0"]), self.reordered(w["weight_hh_l0"]), bias,
                [states[n] for states in before], **self.attributes,
            )  # fmt: skip
            for parts, name in zip(after, done, strict=True):
                parts.append(name)
        for name, parts in zip(self.carried, after, strict=True):
            g.carry(name, self._left(g, g.op("Concat", *parts, axis=0)))
        return g.op("Transpose", self._left(g, y), perm=[1, 0, 2])

    def _joined(self, g: GraphBuilder, x: str) -> str:
        """`[T, B, I]` to `[T, B + 1, I]`, where company is wanted."""
        return g.op("Pad", x, g.integers(0, 0, 0, 0, 1, 0)) if self.company else x

    def _left(self, g: GraphBuilder, y: str) -> str:
        """The company leaves."""
        return g.cut(y, None, -1, axis=1) if self.company else y

    @classmethod
    def reordered(cls, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """`[G * H, ...]` from torch's order of gates to ONNX's."""
        parts = np.split(weights, len(cls.order))
        return np.concatenate([parts[place] for place in cls.order])
