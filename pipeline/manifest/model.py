"""The graph itself: names, axes and types of what goes in, comes out and is carried."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.manifest.part import ITEM_BYTES, LARGEST, MAX_ROW_BYTES, Name, Part

MAX_LAST_CALLS = 4096
"""Calls at the end of a stream, where each takes one block: they are one act, within a worker's lease."""


class _PerStream(Part):
    """A tensor of which each stream has its own: `shape` is the graph's, the batch at `batch_axis` written as 1."""

    input: Name
    shape: tuple[int, ...] = Field(max_length=8)
    batch_axis: int = Field(ge=0)
    initial: float = 0.0

    @model_validator(mode="after")
    def _batch_is_one(self) -> Self:
        if self.batch_axis >= len(self.shape) or self.shape[self.batch_axis] != 1:
            raise ValueError(
                f"state {self.input!r}: shape {list(self.shape)} must hold 1 at batch_axis {self.batch_axis}"
            )
        if min(self.shape) < 1 or math.prod(self.shape) > 2**26:
            raise ValueError(f"state {self.input!r}: shape {list(self.shape)} is absurd (at most 2**26 values)")
        return self

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape one stream carries, without the batch axis."""
        return self.shape[: self.batch_axis] + self.shape[self.batch_axis + 1 :]


class StateSpec(_PerStream):
    """One carried tensor: the graph's input of one step is its output of the step before."""

    output: Name
    dtype: Literal["float32", "float16", "float64", "int64", "int32"] = "float32"

    @model_validator(mode="after")
    def _initial_fits(self) -> StateSpec:
        whole = self.dtype in ("int32", "int64")
        if abs(self.initial) > LARGEST.get(self.dtype, math.inf) or (whole and not self.initial.is_integer()):
            raise ValueError(f"state {self.input!r}: initial {self.initial} is no {self.dtype}")
        return self

    @property
    def row_bytes(self) -> int:
        """What one stream carries of it."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class GivenSpec(_PerStream):
    """An input that a producer gives once, with a stream's first chunk (a speaker's embedding): float32. A stream to
    which nobody gave it runs with `initial`."""


class ConstantSpec(Part):
    """An input that is the same in every call, for every stream: a sample rate, say. `shape` [] is a scalar."""

    input: Name
    value: float
    shape: tuple[int, ...] = Field(default=(), max_length=8)
    dtype: Literal["float32", "float16", "float64", "int64", "int32", "bool"] = "float32"

    @model_validator(mode="after")
    def _fits(self) -> ConstantSpec:
        if math.prod(self.shape) > 2**20 or min(self.shape, default=1) < 1:
            raise ValueError(f"constant {self.input!r}: shape {list(self.shape)} is absurd (at most 2**20 values)")
        whole = self.dtype in ("int32", "int64", "bool")
        if abs(self.value) > LARGEST.get(self.dtype, math.inf) or (whole and not self.value.is_integer()):
            raise ValueError(f"constant {self.input!r}: {self.value} is no {self.dtype}")
        return self

    @property
    def size_bytes(self) -> int:
        """What every process holds of it."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class ModelSpec(Part):
    """Names and axes of the graph's own input and output, and its states.

    input_axes: of B (streams), T (frames), F (features) and 1, in the graph's order: `BTF`, `BF` (a frame a call), `TF`
        (a stream a call), `BFT`, `B1F`. output_axes: likewise with C (classes); without C there is one.
    one_stream: a call takes exactly one stream; so it is where B is missing. one_block: a call takes exactly one block;
        so it is where T is missing.
    also: more outputs, with the output's axes but for C; their columns come behind the scores.
    block: frames one step consumes. latency: frames by which step trails forward.
    tail_frames: frames of silence (zeros) fed at the end of a stream, so that what the end cut off is decided.
    tolerance: largest difference of a score between two cuts or batches; 0: none, to the last bit. For models that are
        not exact (dynamic quantisation scales anew in each call), measured by `statebelt verify`.
    """

    input: Name
    output: Name
    features: int = Field(ge=1, le=2**20)
    classes: int = Field(ge=1, le=65_536)
    states: tuple[StateSpec, ...] = Field(min_length=1, max_length=256)
    input_axes: str = Field(default="BTF", pattern="^[BTF1]*$", max_length=8)
    output_axes: str = Field(default="BTC", pattern="^[BTC1]*$", max_length=8)
    one_stream: bool = False
    one_block: bool = False
    also: tuple[Name, ...] = Field(default=(), max_length=64)
    constants: tuple[ConstantSpec, ...] = Field(default=(), max_length=64)
    given: tuple[GivenSpec, ...] = Field(default=(), max_length=16)
    tolerance: float = Field(default=0.0, ge=0)
    block: int = Field(default=1, ge=1, le=65_536)
    latency: int = Field(default=0, ge=0, le=65_536)
    tail_frames: int = Field(default=0, ge=0, le=65_536)

    @model_validator(mode="after")
    def _names_once(self) -> ModelSpec:
        names = [self.input, *(s.input for s in self.states), *(s.input for s in self.constants)]
        names += [s.input for s in self.given]
        outputs = [self.output, *self.also, *(s.output for s in self.states)]
        for kind, given in (("input", names), ("output", outputs)):
            if len(set(given)) != len(given):
                raise ValueError(f"an {kind} name stands twice in {given}")
        return self

    @model_validator(mode="after")
    def _axes_once(self) -> ModelSpec:
        for name, axes in (("input_axes", self.input_axes), ("output_axes", self.output_axes)):
            letters = axes.replace("1", "")
            if len(set(letters)) != len(letters) or (name == "input_axes" and "F" not in letters):
                raise ValueError(f"{name} {axes!r}: each of its letters once, and F among the input's")
        if ("B" in self.input_axes) != ("B" in self.output_axes) and not self.one_stream:
            raise ValueError(f"B is in one of {self.input_axes!r} and {self.output_axes!r} only: say one_stream")
        if "T" in self.input_axes and "T" not in self.output_axes and not self.one_block:
            raise ValueError(
                f"T is in {self.input_axes!r}, but not in {self.output_axes!r}, though scores are a row a frame: say "
                "one_block, if a call takes one block and yields its one row"
            )
        return self

    @property
    def streams_a_call(self) -> int | None:
        """1, or None: any."""
        return 1 if self.one_stream or "B" not in self.input_axes else None

    @property
    def blocks_a_call(self) -> int | None:
        """1, or None: any."""
        return 1 if self.one_block or "T" not in self.input_axes else None

    @property
    def given_bytes(self) -> int:
        """What a producer gives with a stream's first chunk: all `given` in order, float32, little-endian."""
        return sum(4 * math.prod(spec.shape) for spec in self.given)

    @model_validator(mode="after")
    def _fits_in_memory(self) -> ModelSpec:
        frames = max(self.block, self.tail_frames + self.latency)
        size = 4 * frames * max(self.features, self.classes)
        if size > MAX_ROW_BYTES:
            raise ValueError(
                f"{frames} frames at a time (block, or latency and tail_frames) of {self.features} features and "
                f"{self.classes} classes take {size} bytes a stream; at most {MAX_ROW_BYTES}: make them smaller"
            )
        last = -(-(self.tail_frames + self.latency) // self.block)
        if self.blocks_a_call and last > MAX_LAST_CALLS:
            raise ValueError(
                f"latency {self.latency} and tail_frames {self.tail_frames} take {last} calls of one block at the end "
                f"of each stream; at most {MAX_LAST_CALLS}: make them smaller, or the block larger"
            )
        constant = sum(spec.size_bytes for spec in self.constants)
        if constant > MAX_ROW_BYTES:
            raise ValueError(f"constants of {constant} bytes; at most {MAX_ROW_BYTES}: make them part of the graph")
        return self
