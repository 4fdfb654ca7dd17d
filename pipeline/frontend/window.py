"""Windows of raw samples, for models that take the signal itself.

Frame t ends at sample (t + 1) * hop and holds the `window` samples before that; the signal's left edge is padded with
zeros. So k hops give exactly k frames, and nothing of the future is ever needed.
"""

from __future__ import annotations

import numpy as np

from pipeline.component import Array, Field, State, as_float, fresh


class Window:
    """`[B, k * hop, channels]` samples, float32 or int16, to `[B, k, window * channels]` float32 frames.

    The channels of a sample lie together.

    Args:
        window_samples: samples of one frame.
        hop_samples: new samples of one frame; the others are carried from before it.
        channels: of the signal.
    """

    latency = 0

    def __init__(self, window_samples: int, hop_samples: int, channels: int) -> None:
        self.window_samples = window_samples
        self.block = hop_samples
        self.bins = window_samples * channels
        self._overlap = window_samples - hop_samples
        self._channels = channels
        self.fields = (Field("context", "float32", (self._overlap, channels), signal=True),) if self._overlap else ()

    def initial_state(self, batch: int) -> State:
        return fresh(self.fields, batch)

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        batch, samples, _ = x.shape
        frames = samples // self.block
        if self._overlap == 0:  # frames lie behind each other
            return as_float(x).reshape(batch, frames, self.bins), state
        context = state["context"]
        if context.dtype != x.dtype:
            context, x = as_float(context), as_float(x)
        heard = np.concatenate([context, x], axis=1)
        rest = {"context": heard[:, heard.shape[1] - self._overlap :].copy()}
        signal = as_float(heard)
        if batch == 0 or frames == 0:
            return np.empty((batch, frames, self.bins), np.float32), rest
        windows = np.lib.stride_tricks.sliding_window_view(signal, self.window_samples, axis=1)
        windows = windows[:, :: self.block].swapaxes(2, 3)  # [B, k, window, channels]
        return np.ascontiguousarray(windows).reshape(batch, frames, self.bins), rest

    def flush(self, state: State) -> Array:
        """Nothing: a frame is complete with its last sample, so none is ever held back."""
        return np.empty((len(state["context"]) if state else 0, 0, self.bins), np.float32)
