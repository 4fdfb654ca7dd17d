"""What every architecture has in common: state that the caller carries, dropout, and its own ONNX operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from training.graph import GraphBuilder


@dataclass(frozen=True)
class State:
    """One carried tensor: `shape` with the batch at `batch_axis` written as 1, zeros at a stream's beginning.

    In the graph it comes in as `name` and goes out as `<name>n`.
    """

    name: str
    shape: tuple[int, ...]
    batch_axis: int
    dtype: Literal["float32", "int64"] = "float32"

    def fresh(self, batch: int, device: torch.device) -> Tensor:
        """Zeros for `batch` streams."""
        shape = (*self.shape[: self.batch_axis], batch, *self.shape[self.batch_axis + 1 :])
        return torch.zeros(shape, dtype=getattr(torch, self.dtype), device=device)


class Dropout(nn.Module):
    """Zeros for a share of the values of `[B, T, D]` in training, the rest scaled up; nothing at inference.

    Locked (Gal and Ghahramani, arXiv 1512.05287): one mask for all frames of a segment, so that a unit is away for as
    long as the segment lasts, and the belt between frames is not shaken.
    """

    def __init__(self, share: float, locked: bool = False) -> None:
        super().__init__()
        self.share, self.locked = share, locked

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` to the same."""
        if not self.training or self.share == 0.0:
            return x
        kept = torch.rand(len(x), 1 if self.locked else x.shape[1], x.shape[2], device=x.device) >= self.share
        return x * (kept / (1.0 - self.share)).to(x.dtype)


@dataclass(frozen=True)
class Dropouts:
    """Shares of values dropped in training. Only `between` layers is `locked` when it says so, as are the others."""

    input: float = 0.0
    between: float = 0.0
    output: float = 0.0
    locked: bool = False


class Encoder(nn.Module):
    """Frames `[B, T, I]` and state to frames `[B, T, D]` and state; the same code for a whole signal and for a step.

    T is any multiple of `block`; rows of y trail by `latency` frames. `one_block`: the exported graph takes exactly one
    block a call (`forward` here takes any number of them). Subclasses set `states` and write `run` and `nodes`.
    """

    outputs: int
    block = 1
    latency = 0
    one_block = False
    states: tuple[State, ...]

    @property
    def receptive_frames(self) -> int | None:
        """The last frames, the newest included, on which an output depends; None: all there were."""
        return None

    def __init__(self, inputs: int, dropouts: Dropouts) -> None:
        super().__init__()
        self.inputs = inputs
        self.drop_input = Dropout(dropouts.input, dropouts.locked)
        self.drop_between = Dropout(dropouts.between, dropouts.locked)
        self.drop_output = Dropout(dropouts.output, dropouts.locked)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """What a stream begins with, on the device of the weights."""
        device = next(self.parameters()).device
        return tuple(state.fresh(batch, device) for state in self.states)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`[B, T, I]` and the states to (`[B, T, D]`, the states after)."""
        y, *after = self.run(self.drop_input(x), *state)
        return (self.drop_output(y), *after)

    def run(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """`forward` without the dropout at both ends."""
        raise NotImplementedError

    def nodes(self, g: GraphBuilder, x: str) -> str:
        """Append the operators of `run` to a graph; `x` and the returned name are `[B, T, I]` and `[B, T, D]`."""
        raise NotImplementedError
