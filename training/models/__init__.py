"""Models with state: `forward(x, *state) -> (y, *state)`, the same code for a whole signal and for a step.

encoder.py   what all have in common          front.py, net.py   what stands before and behind them
"""

from __future__ import annotations

import inspect
from typing import Any

from pipeline.errors import ConfigError
from training.models.attention import Attention
from training.models.bilstm import BiLSTM
from training.models.cnn import CNN
from training.models.crnn import CRNN
from training.models.encoder import Dropouts, Encoder, State
from training.models.front import Front, LogMel, Standardise
from training.models.gru import GRU
from training.models.lstm import LSTM
from training.models.lstm_coupled import CoupledLSTM
from training.models.lstm_peephole import PeepholeLSTM
from training.models.net import Net
from training.models.rnn import RNN
from training.models.together import Together

__all__ = ["CELLS", "Dropouts", "Encoder", "Front", "LogMel", "Net", "Standardise", "State", "Together", "encoder"]

CELLS: dict[str, type[Encoder]] = {
    "rnn": RNN,
    "lstm": LSTM,
    "lstm_coupled": CoupledLSTM,
    "lstm_peephole": PeepholeLSTM,
    "gru": GRU,
    "bilstm": BiLSTM,
    "cnn": CNN,
    "crnn": CRNN,
    "attention": Attention,
}
"""Every architecture by its name in recipes."""


def encoder(
    cell: str,
    inputs: int,
    layers: int,
    hidden: int,
    *,
    dropout_input: float = 0.0,
    dropout: float = 0.0,
    dropout_locked: bool = False,
    dropout_output: float = 0.0,
    **options: Any,
) -> Encoder:
    """The architecture `cell`: `layers` layers of `hidden` units over frames `[B, T, inputs]`.

    Args:
        dropout_input, dropout, dropout_output: shares of values dropped before the first layer, between layers, behind
            the last; dropout_locked: one mask for all frames of a segment instead of one a frame.
        options: the cell's own, see its class.
    Raises:
        ConfigError: no such cell, or it has no such option; both name those there are.
    """
    if cell not in CELLS:
        raise ConfigError(f"no cell {cell!r}; there are {', '.join(CELLS)}")
    made = CELLS[cell]
    known = [p.name for p in inspect.signature(made).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"{cell} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    dropouts = Dropouts(dropout_input, dropout, dropout_output, dropout_locked)
    build: Any = made
    encoder: Encoder = build(inputs, layers, hidden, dropouts, **options)
    return encoder
