"""The gated recurrent unit (Cho et al., arXiv 1406.1078), with the reset gate behind the matrix, as in cuDNN.

r_t = sigma(W_r x_t + b_ir + R_r h_(t-1) + b_hr)            z_t likewise
n_t = tanh (W_n x_t + b_in + r_t * (R_n h_(t-1) + b_hn))
h_t = (1 - z_t) * n_t + z_t * h_(t-1)                       y_t = h_t

ONNX calls n h, orders the gates z, r, h, and means this form by `linear_before_reset=1`; torch orders them r, z, n.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from training.models.recurrent import Recurrent


class GRU(Recurrent):
    """L layers of H units over I inputs; state h `[L, B, H]`. Exported as ONNX GRU."""

    operator, layer, carried = "GRU", nn.GRU, ("h",)
    order = (1, 0, 2)
    attributes: ClassVar[dict[str, Any]] = {"linear_before_reset": 1}
