"""What frontend, model and head have in common: state is a value, step equals forward.

A component consumes whole blocks and yields whatever those blocks complete. Its state is a dictionary of
arrays, batch axis first, which `step` reads and never changes: it returns a new one. Running a signal in
one call from a fresh state *is* forward; there is no second code path that could disagree with step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = dict[str, Array]
"""Named arrays `[B, ...]` carried between steps."""


@dataclass(frozen=True)
class Field:
    """One array of a state: its name, element type, shape without the batch axis, initial value.

    signal: it holds samples as they came. `step` takes it as int16 as well, where it is given int16, and then returns
        it so: a row keeps that, in half the bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    initial: float = 0.0
    signal: bool = False


Y = TypeVar("Y", covariant=True)


class Component(Protocol[Y]):
    """The contract of DESIGN section 3, checked for every component by `tests/contract`.

    `block` is the number of input items (samples or frames) one unit consumes; `step` takes `x` of
    `[B, k * block, ...]`, k >= 0. `latency` is the number of frames by which step trails forward.
    """

    @property
    def block(self) -> int: ...

    @property
    def latency(self) -> int: ...

    @property
    def fields(self) -> tuple[Field, ...]: ...

    def initial_state(self, batch: int) -> State: ...

    def step(self, x: Array, state: State) -> tuple[Y, State]: ...

    def flush(self, state: State) -> Y: ...


def fresh(fields: tuple[Field, ...], batch: int) -> State:
    """The initial state of `batch` streams.

    >>> fresh((Field("h", "float32", (2, 3)),), batch=4)["h"].shape
    (4, 2, 3)
    """
    return {f.name: np.full((batch, *f.shape), f.initial, dtype=f.dtype) for f in fields}


def as_float(samples: Array) -> Array:
    """int16 to float32 in -1..1 (exact: a division by 2**15); float32 as it is."""
    if samples.dtype == np.int16:
        return np.multiply(samples, np.float32(1 / 32768), dtype=np.float32)
    return samples.astype(np.float32, copy=False)
