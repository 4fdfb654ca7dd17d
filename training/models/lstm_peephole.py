"""LSTM with peepholes (Gers and Schmidhuber 2000): gates that look at the cell itself, to count and to time.

i_t = sigma(W_i x_t + R_i h_(t-1) + p_i * c_(t-1) + b_i)    f_t likewise
g_t = tanh (W_g x_t + R_g h_(t-1) + b_g)
c_t = f_t * c_(t-1) + i_t * g_t
o_t = sigma(W_o x_t + R_o h_(t-1) + p_o * c_t + b_o)        the output gate sees the new cell
h_t = o_t * tanh(c_t)                                       y_t = h_t

ONNX has the same: it = f(Xt*(Wi^T) + Ht-1*(Ri^T) + Pi (.) Ct-1 + Wbi + Rbi), ot with Po (.) Ct; P = [p_i, p_o, p_f].
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.models.encoder import Dropouts
from training.models.looped import Layer, Looped


class Peephole(Layer):
    """Gates i, o, f, g, as ONNX orders them; p `[3, H]` for i, o, f."""

    gates = 4

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.p = nn.Parameter(torch.empty(3, hidden).uniform_(-0.1, 0.1))

    def step(self, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The equations above."""
        i, o, f, g = a.chunk(4, dim=1)
        p_i, p_o, p_f = self.p
        new = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * g.tanh()
        return torch.sigmoid(o + p_o * new) * new.tanh(), new

    def peepholes(self) -> NDArray[np.float32]:
        """`[3H]`: p_i, p_o, p_f."""
        p: NDArray[np.float32] = self.p.detach().cpu().numpy().reshape(-1)
        return p


class PeepholeLSTM(Looped):
    """L layers of H units over I inputs; states h and c `[L, B, H]`. Exported as ONNX LSTM with its input P.

    forget_bias: what the forget gate's bias begins with; at 1 it starts open.
    """

    layer = Peephole

    def __init__(self, inputs: int, layers: int, hidden: int, dropouts: Dropouts, *, forget_bias: float = 1.0) -> None:
        super().__init__(inputs, layers, hidden, dropouts)
        with torch.no_grad():
            for cell in self.cells:
                cell.get_parameter("b")[2 * hidden : 3 * hidden] = forget_bias
