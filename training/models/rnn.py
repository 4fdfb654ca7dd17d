"""The simple recurrent network (Elman).

h_t = tanh(W x_t + b_i + R h_(t-1) + b_h)                   y_t = h_t

Its gradient passes through tanh' and R at every frame, so it fades or grows like a power of R: what the gates of LSTM
and GRU are there for.
"""

from __future__ import annotations

from torch import nn

from training.models.recurrent import Recurrent


class RNN(Recurrent):
    """L layers of H units over I inputs; state h `[L, B, H]`. Exported as ONNX RNN.

    onnxruntime 1.31 keeps the weights of LSTM and GRU packed, but multiplies those of RNN as they are, and for a single
    stream by another kernel (differences of 1e-7). Hence the company: with two streams and more it was exact.
    """

    operator, layer, carried = "RNN", nn.RNN, ("h",)
    order = (0,)
    company = True
