"""A causal convolutional front over time and frequency, then GRU: CRNN (Sainath 2015; Arik et al., arXiv 1703.05390).

A_0 = x as `[T, M]` bands, one channel
A_n[t, p] = relu(N(sum over j < K_n, q < 2 S_n of W_n[j, q] A_(n-1)[t - (K_n - 1 - j), S_n p + q]))
y = GRU(A_N[t], all patches and channels side by side)

Every second band pair, triple, ... begins a patch of twice the length, so neighbouring patches overlap by half; behind
the last band lie zeros. N is batch normalisation, folded into W when exported. The convolutions see K_n frames, all of
them past or present, so the latency is 0; with a `stride` the first of them answers once for that many frames, at
their end, and the answer stands for all of them: the block.

Exported, a convolution is an unfolding (Slice, Concat) and a MatMul, which is exact over batches and cuts, while
onnxruntime's Conv is not where it yields a single frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError
from training.models.encoder import Dropouts, Encoder, State
from training.models.gru import GRU
from training.models.normed import fold

if TYPE_CHECKING:
    from training.graph import GraphBuilder


class Convolution(nn.Module):
    """`[B, C, P + T, M]` to `[B, O, T / stride, patches]`, normalised, not negative."""

    def __init__(self, width: int, channels: int, outputs: int, taps: int, bands: int, stride: int) -> None:
        super().__init__()
        self.bands, self.taps, self.stride, self.inputs = min(bands, width), taps, stride, channels
        self.patches = -(-width // self.bands)
        self.reach = 1 if self.patches == 1 else 2  # patches that one filter sees
        self.zeros = (self.patches + self.reach - 1) * self.bands - width
        self.past = taps - stride
        self.conv = nn.Conv2d(
            channels, outputs, (taps, self.reach * self.bands), stride=(stride, self.bands), bias=False
        )  # fmt: skip
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, a: Tensor) -> Tensor:
        """Zeros are put behind the last band, nothing before the first frame: `a` begins with the past."""
        a = functional.pad(a, (0, self.zeros))
        if self.training:
            return torch.relu(self.norm(self.conv(a)))
        return functional.conv2d(a, *fold(self.conv.weight, self.norm), stride=self.conv.stride).relu()

    def nodes(self, g: GraphBuilder, wide: str, width: int) -> str:
        """`[B, P + T, M * C]`, channels innermost, to `[B, T / stride, patches * O]`."""
        weight, bias = fold(self.conv.weight, self.norm)
        c, size = self.inputs, self.bands * self.inputs
        zeros = g.op("Pad", wide, g.integers(0, 0, 0, 0, 0, self.zeros * c)) if self.zeros else wide
        patched = g.op("Reshape", zeros, g.integers(0, -1, self.patches + self.reach - 1, size))
        shifts = []
        for j in range(self.taps):  # frames stride * t + j of the past and the present, for every t
            stop = j - self.taps + 1 or None
            at_time = g.cut(patched, j, stop, axis=1, step=self.stride)
            shifts += [g.cut(at_time, q, q + self.patches, axis=2) for q in range(self.reach)]
        unfolded = g.op("Concat", *shifts, axis=3) if len(shifts) > 1 else shifts[0]
        # from [O, C, taps, reach * bands] to [O, taps * reach * bands * C], as the patches lie
        y = g.op("Relu", g.linear(unfolded, weight.permute(0, 2, 3, 1).flatten(1), bias))
        return g.op("Reshape", y, g.integers(0, -1, self.patches * len(weight)))


class CRNN(Encoder):
    """Convolutions over I inputs as bands, then L layers of H GRU units; states past_n `[B, K_n - 1, M_n * C_n]`, h.

    channels, taps, bands: O_n, K_n and S_n, one each for every convolution. stride: frames for which the first
    convolution and all behind it answer once.
    """

    def __init__(
        self,
        inputs: int,
        layers: int,
        hidden: int,
        dropouts: Dropouts,
        *,
        channels: tuple[int, ...] = (32, 48),
        taps: tuple[int, ...] = (5, 3),
        bands: tuple[int, ...] = (4, 2),
        stride: int = 1,
    ) -> None:
        super().__init__(inputs, dropouts)
        if not len(channels) == len(taps) == len(bands) or not 1 <= stride <= taps[0]:
            raise ConfigError(
                f"channels {channels}, taps {taps} and bands {bands} must be equally many, stride {stride} from 1 to "
                f"the first of the taps"
            )
        self.block = stride
        width, deep = inputs, 1
        self.widths = []
        convolutions = []
        for n, out in enumerate(channels):
            convolutions.append(Convolution(width, deep, out, taps[n], bands[n], stride if n == 0 else 1))
            self.widths.append((width, deep))
            width, deep = convolutions[-1].patches, out
        self.convolutions = nn.ModuleList(convolutions)
        self.gru = GRU(width * deep, layers, hidden, Dropouts(between=dropouts.between, locked=dropouts.locked))
        self.outputs = hidden
        contexts = [State(f"past_{n}", (1, c.past, m * k), 0) for n, (c, (m, k)) in enumerate(self._layers())]
        self.kept = [n for n, context in enumerate(contexts) if context.shape[1]]
        self.states = (*(contexts[n] for n in self.kept), *self.gru.states)

    def _layers(self) -> list[tuple[Convolution, tuple[int, int]]]:
        return [(c, w) for c, w in zip(self.convolutions, self.widths, strict=True) if isinstance(c, Convolution)]

    def run(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`[B, T, I]`, left contexts and h to (`[B, T, H]`, left contexts, hn)."""
        before = dict(zip(self.kept, state, strict=False))
        after = []
        for n, (convolution, (width, channels)) in enumerate(self._layers()):
            if n in before:
                x = torch.cat([before[n], x], dim=1)
                after.append(x[:, x.shape[1] - before[n].shape[1] :])
            a = convolution(x.reshape(*x.shape[:2], width, channels).permute(0, 3, 1, 2))
            x = a.permute(0, 2, 3, 1).flatten(2)
        y, *hn = self.gru(self.drop_between(x), *state[len(after) :])
        return (y.repeat_interleave(self.block, dim=1) if self.block > 1 else y, *after, *hn)

    def nodes(self, g: GraphBuilder, x: str) -> str:
        """Each convolution, then the GRU; with a stride its answers are repeated."""
        for n, (convolution, (width, _)) in enumerate(self._layers()):
            if n in self.kept:
                x = g.op("Concat", g.state(f"past_{n}"), x, axis=1)
                g.carry(f"past_{n}", g.cut(x, -convolution.past, None, axis=1))
            x = convolution.nodes(g, x, width)
        y = self.gru.nodes(g, x)
        if self.block == 1:
            return y
        repeated = g.op("Concat", *[y] * self.block, axis=2)
        return g.op("Reshape", repeated, g.integers(0, -1, self.outputs))
