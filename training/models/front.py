"""What stands before an encoder: constants of the graph that turn a frontend's frames into its inputs.

Nothing here is learnt by descent; mean and scale are measured once, before training (`fit`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from training.graph import GraphBuilder


class Front(nn.Module):
    """Frames `[B, T, F]` to features `[B, T, M]` (`features`), and those to what the encoder takes, `[B, T, I]`.

    The two halves are apart so that training can change features between them (mask bands, warp a filterbank).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, frames: int, outputs: int) -> None:
        super().__init__()
        self.frames, self.outputs = frames, outputs
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("scale", torch.ones(outputs))

    def features(self, x: Tensor) -> Tensor:
        """`[B, T, F]` to `[B, T, M]`."""
        return x

    def mixed(self, features: Tensor) -> Tensor:
        """`[B, T, M]` to `[B, T, I]`, not standardised yet."""
        return features

    def standardised(self, features: Tensor) -> Tensor:
        """`[B, T, M]` to `[B, T, I]`: mean taken off, scaled."""
        return (self.mixed(features) - self.mean) * self.scale

    def fit(self, features: Tensor, least: float = 0.1) -> None:
        """Fix mean and scale by features `[..., M]` of training data; a deviation under `least` counts as `least`."""
        mixed = self.mixed(features).flatten(0, -2)
        self.mean.copy_(mixed.mean(dim=0))
        self.scale.copy_(1.0 / mixed.std(dim=0).clamp_min(least))

    def nodes(self, g: GraphBuilder, x: str) -> str:
        """Append the operators; `x` is `[B, T, F]`, the returned name `[B, T, I]`."""
        centred = g.op("Sub", x, g.constant(self.mean, "mean"))
        return g.op("Mul", centred, g.constant(self.scale, "scale"))


class Standardise(Front):
    """(x - mean) * scale: for sensors, whose frames are features already."""

    def __init__(self, frames: int) -> None:
        super().__init__(frames, frames)


class LogMel(Front):
    """log(p W_mel + floor), then optionally the first K rows of the orthonormal DCT-II, then (x - mean) * scale.

    bank: `[F, M]`, M a multiple of 4 (onnxruntime's Log is not exact over cuts otherwise: its last one to three values
    take another path). cepstra: K; 0 for none, the mel bands themselves.
    """

    mel: Tensor
    dct: Tensor | None

    def __init__(self, bank: NDArray[np.float32], *, floor: float = 1e-6, cepstra: int = 0) -> None:
        frames, mels = bank.shape
        super().__init__(frames, cepstra or mels)
        if mels % 4:
            raise ConfigError(f"{mels} mel bands; onnxruntime's Log needs a multiple of 4 to be exact over cuts")
        self.floor, self.mels = floor, mels
        self.register_buffer("mel", torch.from_numpy(np.array(bank, np.float32)))
        dct = scipy.fft.dct(np.eye(mels), norm="ortho", axis=1)[:, :cepstra] if cepstra else None
        self.register_buffer("dct", None if dct is None else torch.from_numpy(np.ascontiguousarray(dct, np.float32)))

    def features(self, x: Tensor, bank: Tensor | None = None) -> Tensor:
        """`[B, T, F]` power to `[B, T, M]` log mel power; `bank` `[B, F, M]` gives each stream a bank of its own."""
        return (x @ (self.mel if bank is None else bank)).add(self.floor).log()

    def mixed(self, features: Tensor) -> Tensor:
        """`[B, T, M]` log mel to cepstra, where there are any."""
        return features if self.dct is None else features @ self.dct

    def nodes(self, g: GraphBuilder, x: str) -> str:
        """MatMul, Add, Log, MatMul, Sub, Mul."""
        bands = g.op("MatMul", x, g.constant(self.mel, "mel"))
        log = g.op("Log", g.op("Add", bands, g.constant(np.array(self.floor, np.float32), "floor")))
        return super().nodes(g, log if self.dct is None else g.op("MatMul", log, g.constant(self.dct, "dct")))
