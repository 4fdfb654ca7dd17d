"""Latency-controlled bidirectional LSTM (Zhang et al., arXiv 1510.08983): the future, but only so much of it.

The stream is cut into blocks of N_c frames; with a block go the N_r frames behind it, its right context. In each layer

    forward   h, c of the block's beginning, carried -> over the block, where they are kept for the next block,
              and on over the right context, where they are not
    backward  from zeros at the end of the right context, back over it and the block
    y         both side by side, `[2H]`, input of the next layer over block and right context alike

and the last layer's y of the block is what comes out: N_r frames late, since its right context must have come. So N_r
frames of input are carried; the first N_r rows stand for the zeros that were carried before the stream began, and at
its end N_r frames of silence bring out the last ones (the manifest's `latency`; `pipeline/model.py`).

torch has no such layer: the forward runs are one call a block, the others one call for all blocks side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.models.encoder import Dropouts, Encoder, State
from training.models.lstm import LSTM

if TYPE_CHECKING:
    from training.graph import GraphBuilder


class BiLSTM(Encoder):
    """L layers of H units in each direction; states h and c `[L, B, H]` (forward), ahead `[B, N_r, I]`.

    block_frames: N_c. ahead_frames: N_r, the latency. forget_bias: what forget gates' biases begin with.
    """

    one_block = True

    def __init__(
        self,
        inputs: int,
        layers: int,
        hidden: int,
        dropouts: Dropouts,
        *,
        block_frames: int = 20,
        ahead_frames: int = 10,
        forget_bias: float = 1.0,
    ) -> None:
        super().__init__(inputs, dropouts)
        self.outputs, self.block, self.latency = 2 * hidden, block_frames, ahead_frames
        sizes = [inputs] + [2 * hidden] * (layers - 1)
        self.onward = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.back = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        with torch.no_grad():
            for cell in [*self.onward, *self.back]:
                cell.get_parameter("bias_ih_l0")[hidden : 2 * hidden] = forget_bias
        self.states = (
            State("h", (layers, 1, hidden), 1), State("c", (layers, 1, hidden), 1),
            State("ahead", (1, ahead_frames, inputs), 0),
        )  # fmt: skip

    def run(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`[B, k * N_c, I]`, h, c and the frames ahead to (`[B, k * N_c, 2H]`, N_r frames late, and the three)."""
        h, c, ahead = state
        batch, block = len(x), self.block
        x = torch.cat([ahead, x], dim=1)
        w = x.unfold(1, block + self.latency, block).transpose(2, 3)  # [B, k, N_c + N_r, I]
        hn, cn = [], []
        for n in range(len(self.onward)):
            if n:
                w = self.drop_between(w.flatten(0, 1)).unflatten(0, (batch, -1))
            y, hn_n, cn_n = self._layer(n, w, h[n : n + 1], c[n : n + 1])
            hn.append(hn_n)
            cn.append(cn_n)
            w = y
        return w[:, :, :block].flatten(1, 2), torch.cat(hn), torch.cat(cn), x[:, x.shape[1] - self.latency :]

    def _layer(self, n: int, w: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Windows `[B, k, N_c + N_r, I]`, h and c `[1, B, H]` to (`[B, k, N_c + N_r, 2H]`, hn, cn)."""
        batch, blocks = w.shape[:2]
        heads, hs, cs = [], [], []
        for b in range(blocks):
            y, (h, c) = self.onward[n](w[:, b, : self.block], (h.contiguous(), c.contiguous()))
            heads.append(y)
            hs.append(h)
            cs.append(c)
        begin = tuple(torch.stack(s, dim=2).flatten(1, 2) for s in (hs, cs))  # [1, B * k, H]
        tails, _ = self.onward[n](w[:, :, self.block :].flatten(0, 1), begin)
        onward = torch.cat([torch.stack(heads, dim=1), tails.reshape(batch, blocks, *tails.shape[1:])], dim=2)
        back, _ = self.back[n](w.flatten(0, 1).flip(1))
        return torch.cat([onward, back.flip(1).reshape(onward.shape)], dim=3), h, c

    def nodes(self, g: GraphBuilder, x: str) -> str:
        """One block: three LSTM operators a layer, the third in reverse."""
        layers = len(self.onward)
        h, c = (g.split(g.state(name), layers, axis=0) for name in ("h", "c"))
        wide = g.op("Concat", g.state("ahead"), x, axis=1)
        g.carry("ahead", g.cut(wide, -self.latency, None, axis=1))
        y = g.op("Transpose", wide, perm=[1, 0, 2])
        hn, cn = [], []
        for n in range(layers):
            onward, back = (self._weights(cells[n]) for cells in (self.onward, self.back))
            head, h_n, c_n = g.recurrent("LSTM", g.cut(y, None, self.block, axis=0), *onward, [h[n], c[n]])
            tail, _, _ = g.recurrent("LSTM", g.cut(y, self.block, None, axis=0), *onward, [h_n, c_n])
            reverse, _, _ = g.recurrent("LSTM", y, *back, [], direction="reverse")
            y = g.op("Concat", g.op("Concat", head, tail, axis=0), reverse, axis=2)
            hn.append(h_n)
            cn.append(c_n)
        g.carry("h", g.op("Concat", *hn, axis=0))
        g.carry("c", g.op("Concat", *cn, axis=0))
        return g.op("Transpose", g.cut(y, None, self.block, axis=0), perm=[1, 0, 2])

    @staticmethod
    def _weights(cell: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """W, R and both biases of a direction, gates in ONNX's order."""
        w = {name: LSTM.reordered(value.detach().cpu().numpy()) for name, value in cell.named_parameters()}
        return w["weight_ih_l0"], w["weight_hh_l0"], np.concatenate([w["bias_ih_l0"], w["bias_hh_l0"]])
