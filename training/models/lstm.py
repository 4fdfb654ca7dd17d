"""Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

i_t = sigma(W_i x_t + b_ii + R_i h_(t-1) + b_hi)            f_t, o_t likewise
g_t = tanh (W_g x_t + b_ig + R_g h_(t-1) + b_hg)
c_t = f_t * c_(t-1) + i_t * g_t                             the belt
h_t = o_t * tanh(c_t)                                       y_t = h_t

torch stacks the gates i, f, g, o; ONNX i, o, f, g (and calls the last c).
"""

from __future__ import annotations

import torch
from torch import nn

from training.models.encoder import Dropouts
from training.models.recurrent import Recurrent


class LSTM(Recurrent):
    """L layers of H units over I inputs; states h and c `[L, B, H]`. Exported as ONNX LSTM.

    forget_bias: what the forget gate's bias begins with; at 1 it starts open, so the belt runs before it is taught to.
    """

    operator, layer, carried = "LSTM", nn.LSTM, ("h", "c")
    order = (0, 3, 1, 2)

    def __init__(self, inputs: int, layers: int, hidden: int, dropouts: Dropouts, *, forget_bias: float = 1.0) -> None:
        super().__init__(inputs, layers, hidden, dropouts)
        with torch.no_grad():
            for cell in self.cells:
                cell.get_parameter("bias_ih_l0")[hidden : 2 * hidden] = forget_bias
