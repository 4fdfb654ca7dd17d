"""LSTM with coupled forget and input gates (CIFG in arXiv 1503.04069): as much is forgotten as is written.

i_t = sigma(W_i x_t + R_i h_(t-1) + b_i)                    o_t likewise
g_t = tanh (W_g x_t + R_g h_(t-1) + b_g)
c_t = (1 - i_t) * c_(t-1) + i_t * g_t
h_t = o_t * tanh(c_t)                                       y_t = h_t

A quarter of the weights fewer. ONNX says it by `input_forget=1`: f = 1 - i, and what stands for the forget gate in W, R
and B is not looked at (onnxruntime does so: tests/unit/test_models.py holds it with NaN there).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.models.encoder import Dropouts
from training.models.looped import Layer, Looped


class Coupled(Layer):
    """Gates i, o, g."""

    gates = 3

    def step(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The equations above."""
        i, o, g = a.chunk(3, dim=1)
        i = i.sigmoid()
        c = (1 - i) * c + i * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def exported(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Zeros where ONNX has the forget gate."""
        w, r, b = (np.split(v, 3) for v in super().exported())
        i, o, g = ([part[gate] for part in (w, r, b)] for gate in range(3))
        w4, r4, b4 = (np.concatenate([i[n], o[n], np.zeros_like(i[n]), g[n]]) for n in range(3))
        return w4, r4, b4


class CoupledLSTM(Looped):
    """L layers of H units over I inputs; states h and c `[L, B, H]`. Exported as ONNX LSTM with `input_forget=1`.

    input_bias: what the input gate's bias begins with; at -1 the belt keeps three quarters of what it carries.
    """

    layer = Coupled
    attributes: ClassVar[dict[str, Any]] = {"input_forget": 1}

    def __init__(self, inputs: int, layers: int, hidden: int, dropouts: Dropouts, *, input_bias: float = -1.0) -> None:
        super().__init__(inputs, layers, hidden, dropouts)
        with torch.no_grad():
            for cell in self.cells:
                cell.get_parameter("b")[:hidden] = input_bias
