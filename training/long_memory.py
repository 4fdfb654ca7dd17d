"""How a net that is to remember for long begins: inputs that gates can tell apart, gates that stay shut or open.

Two things decided whether the adding and the copy problem were learnt in minutes or not at all, and neither is size:

- Input weights drawn with deviation 1. torch draws them within 1 / sqrt(H), for H inputs; these tasks have two or ten,
  and a marker that moves a gate by 0.1 is not seen among hundreds of frames.
- Chrono initialisation (Tallec and Ollivier, arXiv 1804.11188): forget biases log u with u uniform in 1..span - 1, so
  that the units' memories are spread over 1..span frames; the LSTM's input biases are the negatives.
"""

from __future__ import annotations

import torch
from torch import nn

from training.models import Net


@torch.no_grad()
def widen_inputs(net: Net, deviation: float) -> None:
    """Draw the first layer's input weights with this deviation: rnn, lstm and gru (others keep what they have)."""
    if cells := _cells(net):
        cells[0].get_parameter("weight_ih_l0").normal_(0.0, deviation)


@torch.no_grad()
def chrono(net: Net, span_frames: int) -> None:
    """Spread the memories of LSTM and GRU units over 1..span_frames; a simple RNN has no gate to set.

    torch stacks an LSTM's biases i, f, g, o and a GRU's r, z, n; z keeps the old state, as f does.
    """
    for cell in _cells(net):
        if isinstance(cell, nn.RNN):
            continue
        hidden = cell.hidden_size
        memory = torch.empty(hidden).uniform_(1.0, max(2.0, span_frames - 1.0)).log()
        bias = cell.get_parameter("bias_ih_l0").zero_()
        cell.get_parameter("bias_hh_l0").zero_()
        bias[hidden : 2 * hidden] = memory
        if isinstance(cell, nn.LSTM):
            bias[:hidden] = -memory


def _cells(net: Net) -> list[nn.RNN | nn.LSTM | nn.GRU]:
    """The layers that torch has a kernel for."""
    cells = getattr(net.encoder, "cells", [])
    return [cell for cell in cells if isinstance(cell, nn.RNN | nn.LSTM | nn.GRU)]
