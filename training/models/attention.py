"""Causal self-attention whose memory is bounded: each frame looks at the last W frames, itself among them, by distance.

z_t  = N(u_t)                                               N: layer normalisation of one frame
q_t, k_t, v_t = W_q z_t, W_k z_t, W_v z_t                   cut into heads of d values
e_tj = q_t . k_(t-j) / sqrt(d) + r_j                        0 <= j < W; r: learnt, one a head and distance
u_t := u_t + W_o sum over j of softmax_j(e_t) v_(t-j)
u_t := u_t + W_2 relu(W_1 N(u_t) + b_1) + b_2

Positions are distances (as T5's, arXiv 1910.10683, without its bins), so the cache holds keys and values as they are
and a frame's age is where it lies: k and v of the last W - 1 frames of each layer, and `valid`, 1 for a frame that the
stream had and 0 for one before its beginning, which nobody looks at. The memory is flat for ever.

Exported, each frame's W keys and values are gathered into matrices of its own, `[W, d]`, so that every product has the
same shape whatever the batch and the cut. That is what makes it exact. Measured with onnxruntime 1.31 (AVX-512, H 64, 4
heads, W 64, 64 streams, 10 frames a call): this, equal in all of 45 batches and cuts, 4.6 us a frame and layer; keys
and queries multiplied one by one and summed by ReduceSum, 7.3 us and unequal once; all frames with all keys under a
mask, as in training, 1.2 us and unequal in 30 of 45 (by 1.5e-6): the softmax adds up otherwise where the window lies
elsewhere in the row. The price is memory while a call lasts, about 8 * W * H bytes a frame: ten minutes of 100 frames a
second at H 128, in one call, took 3.5 GB. Long recordings go in chunks (`statebelt run --chunk-ms`): the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from pipeline.errors import ConfigError
from training.models.encoder import Dropouts, Encoder, State

if TYPE_CHECKING:
    from training.graph import GraphBuilder

PIECE_FRAMES = 256
"""`run` looks at so many frames at once: the table of all pairs of a long signal would not fit in memory."""


class Block(nn.Module):
    """One layer: attention over the window, then two linear maps, each added to what came in."""

    def __init__(self, hidden: int, heads: int, window: int, widen: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.look, self.think = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.by_distance = nn.Parameter(torch.zeros(heads, window))
        self.mix = nn.Linear(hidden, hidden)
        self.widen, self.narrow = nn.Linear(hidden, widen * hidden), nn.Linear(widen * hidden, hidden)

    def forward(self, u: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, H]`, k and v `[B, W - 1, H]`, seen `[B, W - 1 + T]` to (`[B, T, H]`, kn, vn)."""
        q, new_k, new_v = self.qkv(self.look(u)).chunk(3, dim=2)
        k, v = torch.cat([k, new_k], dim=1), torch.cat([v, new_v], dim=1)
        frames, keys = q.shape[1], k.shape[1]
        age = torch.arange(keys - frames, keys, device=u.device)[:, None] - torch.arange(keys, device=u.device)
        within = (age >= 0) & (age < self.window)
        e = self.by_distance[:, age.clamp(0, self.window - 1)]  # [heads, T, keys]
        e = e.masked_fill(~within, -torch.inf)[None].masked_fill(seen[:, None, None, :] == 0, -torch.inf)
        a = nn.functional.scaled_dot_product_attention(self._apart(q), self._apart(k), self._apart(v), attn_mask=e)
        u = u + self.mix(a.transpose(1, 2).flatten(2))
        u = u + self.narrow(self.widen(self.think(u)).relu())
        return u, k[:, frames:], v[:, frames:]

    def nodes(self, g: GraphBuilder, u: str, n: int, places: str, unseen: str) -> str:
        """`[B, T, H]` to `[B, T, H]`; places `[T, W]`: where a frame's keys lie; unseen `[B, 1, T, W]`: 0, or -1e9."""
        hidden, frames = self.mix.in_features, self.window - 1
        z = g.normalised(u, self.look)
        q, *fresh = g.split(g.linear(z, self.qkv.weight, self.qkv.bias), 3, axis=2)
        apart = g.integers(0, -1, self.heads, hidden // self.heads)
        windows = []
        for name, new in zip((f"k_{n}", f"v_{n}"), fresh, strict=True):
            wide = g.op("Concat", g.state(name), new, axis=1)
            g.carry(name, g.cut(wide, -frames, None, axis=1))
            heads = g.op("Transpose", g.op("Reshape", wide, apart), perm=[0, 2, 1, 3])  # [B, heads, W - 1 + T, d]
            windows.append(g.op("Gather", heads, places, axis=2))  # [B, heads, T, W, d]
        scaled = g.op("Mul", q, g.constant(np.array((hidden // self.heads) ** -0.5, np.float32)))
        q = g.op("Unsqueeze", g.op("Transpose", g.op("Reshape", scaled, apart), perm=[0, 2, 1, 3]), g.integers(4))
        e = g.op("Squeeze", g.op("MatMul", windows[0], q), g.integers(4))  # [B, heads, T, W]
        oldest_first = self.by_distance.flip(1)[:, None]
        e = g.op("Add", g.op("Add", e, g.constant(oldest_first, "r")), unseen)
        shares = g.op("Unsqueeze", g.op("Softmax", e, axis=-1), g.integers(3))
        a = g.op("Squeeze", g.op("MatMul", shares, windows[1]), g.integers(3))  # [B, heads, T, d]
        a = g.op("Reshape", g.op("Transpose", a, perm=[0, 2, 1, 3]), g.integers(0, -1, hidden))
        u = g.op("Add", u, g.linear(a, self.mix.weight, self.mix.bias))
        wide = g.op("Relu", g.linear(g.normalised(u, self.think), self.widen.weight, self.widen.bias))
        return g.op("Add", u, g.linear(wide, self.narrow.weight, self.narrow.bias))

    def _apart(self, x: Tensor) -> Tensor:
        """`[B, T, H]` to `[B, heads, T, d]`."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Attention(Encoder):
    """L layers over I inputs, H wide; states k_l and v_l `[B, W - 1, H]` for each, and valid `[B, W - 1]`.

    heads: H is a multiple of them. window_frames: W. widen: the inner width of the linear maps, times H.
    """

    def __init__(
        self,
        inputs: int,
        layers: int,
        hidden: int,
        dropouts: Dropouts,
        *,
        heads: int = 4,
        window_frames: int = 64,
        widen: int = 2,
    ) -> None:
        super().__init__(inputs, dropouts)
        if hidden % heads or window_frames < 2:
            raise ConfigError(
                f"hidden {hidden} must be a multiple of heads {heads}, window_frames {window_frames} at least 2"
            )
        self.outputs, self.window = hidden, window_frames
        self.stem = nn.Linear(inputs, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, window_frames, widen) for _ in range(layers))
        self.end = nn.LayerNorm(hidden)
        names = [f"{kind}_{n}" for n in range(layers) for kind in "kv"]
        cached = tuple(State(name, (1, window_frames - 1, hidden), 0) for name in names)
        self.states = (*cached, State("valid", (1, window_frames - 1), 0))

    @property
    def receptive_frames(self) -> int:
        """The last frames, the newest included, on which an output depends."""
        return 1 + len(self.blocks) * (self.window - 1)

    def run(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`[B, T, I]`, keys, values and valid to (`[B, T, H]`, the same)."""
        ys = []
        for piece in self.stem(x).split(PIECE_FRAMES, dim=1):
            y, *state = self._piece(piece, *state)  # type: ignore[assignment]
            ys.append(y)
        return (torch.cat(ys, dim=1), *state)

    def _piece(self, u: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        *cached, valid = state
        seen = torch.cat([valid, valid.new_ones(u.shape[:2])], dim=1)
        after = []
        for n, block in enumerate(self.blocks):
            u, k, v = block(self.drop_between(u) if n else u, *cached[2 * n : 2 * n + 2], seen)
            after += [k, v]
        return (self.end(u), *after, seen[:, u.shape[1] :])

    def nodes(self, g: GraphBuilder, x: str) -> str:
        """Where each frame's window lies, and which of it the stream had; then layer after layer."""
        fresh = g.op("ConstantOfShape", g.op("Shape", x, end=2), value=numpy_helper.from_array(np.ones(1, np.float32)))
        seen = g.op("Concat", g.state("valid"), fresh, axis=1)
        g.carry("valid", g.cut(seen, 1 - self.window, None, axis=1))
        zero, one = g.constant(np.array(0, np.int64)), g.constant(np.array(1, np.int64))
        frames = g.op("Range", zero, g.op("Squeeze", g.op("Shape", x, start=1, end=2)), one)
        window = g.constant(np.arange(self.window, dtype=np.int64)[None])
        places = g.op("Add", g.op("Unsqueeze", frames, g.integers(1)), window)
        unseen = g.op(
            "Mul", g.op("Sub", seen, g.constant(np.array(1, np.float32))), g.constant(np.array(1e9, np.float32))
        )
        unseen = g.op("Unsqueeze", g.op("Gather", unseen, places, axis=1), g.integers(1))
        u = g.linear(x, self.stem.weight, self.stem.bias)
        for n, block in enumerate(self.blocks):
            if isinstance(block, Block):
                u = block.nodes(g, u, n, places, unseen)
        return g.normalised(u, self.end)
