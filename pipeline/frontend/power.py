"""Power spectrum: samples to frames `[F = window/2 + 1]`, causal, in rows.

Frame t ends at sample (t + 1) * hop and covers the `window` samples before that; the signal's left edge is
padded with zeros. So k hops give exactly k frames and nothing of the future is ever needed. Equal to
`abs(librosa.stft(pad(y, (window - hop, 0)), n_fft=window, hop_length=hop, center=False)) ** 2`.
Mel filterbank and log are constants of the exported graph (DESIGN section 3), not of this file.
"""

from __future__ import annotations

import numpy as np

from pipeline.component import Array, Field, State, as_float, fresh
from pipeline.frontend.spectra import COMPILED, spectra


class PowerSpectrum:
    """`[B, k * hop, 1]` samples, float32 in -1..1 or int16, to `[B, k, window // 2 + 1]` float32 power.

    Args:
        window_samples: samples under one analysis (also the FFT's length).
        hop_samples: samples between two analyses.
        compiled: by compiled code, where it has this length (`spectra`).
    """

    latency = 0

    def __init__(self, window_samples: int, hop_samples: int, *, compiled: bool = COMPILED) -> None:
        self.window_samples = window_samples
        self.hop_samples = hop_samples
        self.block = hop_samples
        self.bins = window_samples // 2 + 1
        # The periodic Hann window, as librosa.filters.get_window("hann", fftbins=True): 1/2 - 1/2 cos(2 pi n / N).
        # (scipy.signal has it too, but importing that takes longer than all the rest of a worker's start.)
        turns = np.arange(window_samples) / window_samples
        self._spectra = spectra((0.5 - 0.5 * np.cos(2 * np.pi * turns)).astype(np.float32), compiled=compiled)
        self.fields = (Field("context", "float32", (window_samples - hop_samples,), signal=True),)

    def initial_state(self, batch: int) -> State:
        return fresh(self.fields, batch)

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        batch, samples, _ = x.shape
        if samples % self.hop_samples:
            raise ValueError(f"{samples} samples a stream: expected whole hops of {self.hop_samples}")
        power = np.empty((batch, samples // self.hop_samples, self.bins), np.float32)
        context = state["context"]
        if context.dtype != x.dtype:
            context, x = as_float(context), as_float(x)
        context, x = np.ascontiguousarray(context), np.ascontiguousarray(x)
        after = np.empty_like(context)
        self._spectra(context, x.reshape(batch, samples), power, after)
        return power, {"context": after}

    def flush(self, state: State) -> Array:
        """Nothing: a frame is complete with its last sample, so none is ever held back."""
        return np.empty((len(state["context"]), 0, self.bins), np.float32)
