"""The keyword LSTM: power spectra to class probabilities, `h` and `c` carried by the caller.

x_t   = (D log(W_mel p_t + floor) - mean) * scale          D: the first K rows of the orthonormal DCT-II
i_t   = sigma(W_ii x_t + b_ii + W_hi h_(t-1) + b_hi)        f_t, o_t likewise
g_t   = tanh (W_ig x_t + b_ig + W_hg h_(t-1) + b_hg)
c_t   = f_t * c_(t-1) + i_t * g_t
h_t   = o_t * tanh(c_t)
y_t   = softmax(W_y h_t + b_y) W_f                          W_f: adds auxiliary classes to the background
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import torch
from torch import Tensor, nn

from training.augment import filterbank
from training.recipes.digits import BACKGROUND, LABELS, Recipe


class KeywordLSTM(nn.Module):
    """L layers of H units over K cepstra of M mel bands; C' classes are learnt, C are told.

    Constants, not learnt: mel `[F, M]`, dct `[M, K]`, mean and scale `[K]`, fold `[C', C]`.

    The cosine transform is there for the voices: at 8 kHz single mel bands follow the harmonics of a voice, the first
    13 cepstra only the shape that the throat gives them. The auxiliary classes are there for the background: told
    apart from each other, its words are better told apart from digits.
    """

    mel: Tensor
    dct: Tensor
    mean: Tensor
    scale: Tensor
    fold: Tensor

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.layers, self.hidden, self.floor = recipe.layers, recipe.hidden, recipe.log_floor
        bank = filterbank(recipe.sample_rate_hz, recipe.window_samples, recipe.mels)
        self.register_buffer("mel", torch.from_numpy(bank.copy()))
        dct = scipy.fft.dct(np.eye(recipe.mels), norm="ortho", axis=1)[:, : recipe.cepstra]
        self.register_buffer("dct", torch.from_numpy(np.ascontiguousarray(dct, np.float32)))
        self.register_buffer("mean", torch.zeros(recipe.cepstra))
        self.register_buffer("scale", torch.ones(recipe.cepstra))
        self.lstm = nn.LSTM(recipe.cepstra, self.hidden, self.layers, batch_first=True, dropout=recipe.dropout)
        self.dropout = nn.Dropout(recipe.dropout)
        classes = len(LABELS) + recipe.auxiliary
        fold = torch.eye(classes, len(LABELS))
        fold[len(LABELS) :, LABELS.index(BACKGROUND)] = 1.0
        self.register_buffer("fold", fold)
        self.classify = nn.Linear(self.hidden, classes)
        with torch.no_grad():
            for layer in range(self.layers):
                # A forget gate that starts open: the belt runs before it is taught to.
                getattr(self.lstm, f"bias_ih_l{layer}")[self.hidden : 2 * self.hidden] = 1.0

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """h and c, each `[L, B, H]` of zeros."""
        return torch.zeros(self.layers, batch, self.hidden), torch.zeros(self.layers, batch, self.hidden)

    def log_mel(self, power: Tensor, bank: Tensor | None = None) -> Tensor:
        """`[B, T, F]` power to `[B, T, M]` log of mel power plus the floor; `bank` `[B, F, M]` warps each stream's."""
        return (power @ (self.mel if bank is None else bank)).add(self.floor).log()

    def logits(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, M]` log mel frames to `[B, T, C']` logits."""
        y, (hn, cn) = self.lstm((x @ self.dct - self.mean) * self.scale, (h, c))
        return self.classify(self.dropout(y)), hn, cn

    def forward(self, power: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, F]` power, h and c `[L, B, H]` to (probabilities `[B, T, C]`, hn, cn)."""
        logits, hn, cn = self.logits(self.log_mel(power), h, c)
        return logits.softmax(dim=-1) @ self.fold, hn, cn
