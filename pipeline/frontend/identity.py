"""Identity: frames are the samples themselves (sensor vectors, or spectrograms computed by the producer)."""

from __future__ import annotations

import numpy as np

from pipeline.component import Array, Field, State, as_float


class Identity:
    """`[B, k, channels]` samples, float32 or int16, to the same `[B, k, channels]` float32 frames."""

    block = 1
    hop_samples = 1
    latency = 0
    fields: tuple[Field, ...] = ()

    def __init__(self, channels: int) -> None:
        self.bins = channels

    def initial_state(self, batch: int) -> State:
        return {}

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        return as_float(x), {}

    def flush(self, state: State) -> Array:
        return np.empty((0, 0, self.bins), np.float32)
