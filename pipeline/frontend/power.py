"""Power spectrum: samples to frames `[F = window/2 + 1]`, causal, in rows.

Frame t ends at sample (t + 1) * hop and covers the `window` samples before that; the signal's left edge is
padded with zeros. So k hops give exactly k frames and nothing of the future is ever needed. Equal to
`abs(librosa.stft(pad(y, (window - hop, 0)), n_fft=window, hop_length=hop, center=False)) ** 2`.
Mel filterbank and log are constants of the exported graph (DESIGN section 3), not of this file.
"""

from __future__ import annotations

import numpy as np
import scipy.fft

from pipeline.component import Array, Field, State, fresh

_ROWS_AT_A_TIME = 160
"""Frames in one transform: of 512 points, the fastest number measured."""


class PowerSpectrum:
    """`[B, k * hop, 1]` float32 samples in -1..1 to `[B, k, window // 2 + 1]` float32 power.

    Args:
        window_samples: samples under one analysis (also the FFT's length).
        hop_samples: samples between two analyses.
    """

    latency = 0

    def __init__(self, window_samples: int, hop_samples: int) -> None:
        self.window_samples = window_samples
        self.hop_samples = hop_samples
        self.block = hop_samples
        self.bins = window_samples // 2 + 1
        # The periodic Hann window, as librosa.filters.get_window("hann", fftbins=True): 1/2 - 1/2 cos(2 pi n / N).
        # (scipy.signal has it too, but importing that takes longer than all the rest of a worker's start.)
        turns = np.arange(window_samples) / window_samples
        self._hann = (0.5 - 0.5 * np.cos(2 * np.pi * turns)).astype(np.float32)
        self.fields = (Field("context", "float32", (window_samples - hop_samples,), signal=True),)

    def initial_state(self, batch: int) -> State:
        return fresh(self.fields, batch)

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        batch, samples, _ = x.shape
        frames, overlap = samples // self.hop_samples, self.window_samples - self.hop_samples
        power = np.empty((batch, frames, self.bins), np.float32)
        context = np.empty((batch, overlap), np.float32)
        # Every stage of a slice of the batch before the next slice: it stays inside the core's cache, and rows are
        # independent, so the cut changes no byte.
        streams = max(1, _ROWS_AT_A_TIME // max(1, frames))
        for b in range(0, batch, streams):
            some = slice(b, b + streams)
            signal = np.concatenate([state["context"][some], x[some, :, 0]], axis=1, dtype=np.float32)
            context[some] = signal[:, samples:]
            for t in range(0, frames, _ROWS_AT_A_TIME):
                self._power(signal, t, power[some, t : t + _ROWS_AT_A_TIME])
        return power, {"context": context}

    def _power(self, signal: Array, first: int, power: Array) -> None:
        """Write `power` `[b, t, F]`, the spectra of t windows of `signal` `[b, n]`, from window `first` on."""
        stream, sample = signal.strides
        # All windows of all streams, which overlap, not copied. (sliding_window_view: 9 us, this: half a microsecond.)
        windows = np.ndarray(
            (*power.shape[:2], self.window_samples),
            np.float32,
            signal,
            first * self.hop_samples * sample,
            (stream, self.hop_samples * sample, sample),
        )
        spectrum = scipy.fft.rfft(windows * self._hann, axis=-1, overwrite_x=True)
        parts = spectrum.view(np.float32)
        np.multiply(parts, parts, out=parts)
        np.add(parts[..., 0::2], parts[..., 1::2], out=power)

    def flush(self, state: State) -> Array:
        """Nothing: a frame is complete with its last sample, so none is ever held back."""
        return np.empty((len(state["context"]), 0, self.bins), np.float32)
