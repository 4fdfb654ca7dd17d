"""What a microphone, a room and another throat do to a word. All random choices come from the given generator."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import librosa
import numpy as np
import scipy.fft
import scipy.signal
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]
Rng = np.random.Generator


def speed(x: Samples, rate: float, sample_rate_hz: int = 8000) -> Samples:
    """`[N]` to `[N / rate]`: faster and higher (pitch and formants move along)."""
    return np.asarray(soxr.resample(x, sample_rate_hz * rate, sample_rate_hz, quality="LQ"), np.float32)


def stretch(x: Samples, rate: float) -> Samples:
    """`[N]` to `[N / rate]`: faster at the same pitch (a phase vocoder)."""
    return np.asarray(librosa.effects.time_stretch(x, rate=rate, n_fft=256, hop_length=64), np.float32)


def overlapped(x: Samples, rate: float, window: int = 512, search: int = 160) -> Samples:
    """`[N]` to `[N / rate]`: faster at the same pitch, windows laid where they fit best (WSOLA, Verhelst and Roelands
    1993). A hundredth of `stretch`'s work."""
    hop = window // 2
    shape = np.hanning(window + 1)[:window].astype(np.float32)
    padded = np.pad(x, (hop, window + search + hop))
    count = max(1, round(x.size / rate / hop) + 1)
    y, at = np.zeros(count * hop + window, np.float32), 0
    for n in range(count):
        ideal = min(round(n * hop * rate), padded.size - window - search)
        if n:
            low = max(0, ideal - search)
            goal = padded[at + hop : at + hop + window]  # what would go on smoothly from the window before
            heard = padded[low : ideal + search + window]
            energy = np.cumsum(np.concatenate([[0.0], np.square(heard, dtype=np.float64)]))
            fit = np.correlate(heard, goal, "valid") / np.sqrt(energy[window:] - energy[:-window] + 1e-9)
            at = low + int(fit.argmax())
        y[n * hop : n * hop + window] += shape * padded[at : at + window]
        at = min(at, padded.size - window - hop)
    return y[hop : hop + max(1, round(x.size / rate))]


def decibels(value: float) -> float:
    """A level in dB as a factor on the samples."""
    return float(10.0 ** (value / 20.0))


def level(x: Samples, rms_db: float) -> Samples:
    """Scale to a root mean square of `rms_db` below full scale; silence stays silence."""
    rms = float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0
    return x if rms < 1e-7 else (x * np.float32(decibels(rms_db) / rms)).astype(np.float32)


def trimmed(x: Samples, below_db: float, hop: int = 80) -> Samples:
    """`[N]` without the leading and trailing hops that lie `below_db` under the loudest one."""
    hops = x[: x.size // hop * hop].reshape(-1, hop)
    power = np.mean(np.square(hops), axis=1)
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-below_db / 10)) if power.size else np.empty(0)
    return x[loud[0] * hop : (loud[-1] + 1) * hop] if loud.size else x[:0]


def coloured(rng: Rng, length: int, exponent: float) -> Samples:
    """`[length]` noise of unit variance whose power falls as f**-exponent (0 white, 1 pink, 2 brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.maximum(np.arange(spectrum.size), spectrum.size / 400.0)
    noise = np.fft.irfft(spectrum * frequency ** (-exponent / 2.0), n=length)
    return (noise / max(float(noise.std()), 1e-9)).astype(np.float32)


def excerpt(rng: Rng, noise: Samples, length: int) -> Samples:
    """`[length]` from a random place of a longer recording, at unit variance."""
    start = int(rng.integers(0, max(1, noise.size - length)))
    part = np.resize(noise[start : start + length], length)
    return (part / max(float(part.std()), 1e-6)).astype(np.float32)


def tilt(clips: Iterable[Samples], bins: int = 129) -> Samples:
    """`[bins]` dB: the long-term spectrum of a voice in its room and microphone, smooth, around 0."""
    power = np.zeros(bins)
    for x in clips:
        windows = np.lib.stride_tricks.sliding_window_view(x, 2 * (bins - 1))[:: bins - 1]
        power += np.mean(np.abs(np.fft.rfft(windows * np.hanning(2 * (bins - 1)))) ** 2, axis=0)
    level_db = 10.0 * np.log10(np.maximum(power, power.max() * 1e-7))
    smooth = scipy.signal.savgol_filter(level_db, 13, 1)
    return np.asarray(smooth - smooth.mean(), np.float32)


def retouch(x: Samples, curve_db: Samples) -> Samples:
    """`[N]` to `[N]` through an equaliser, `[bins]` dB from 0 Hz to half the rate."""
    length = scipy.fft.next_fast_len(x.size + 128, real=True)
    at = np.linspace(0, curve_db.size - 1, length // 2 + 1, dtype=np.float32)
    gains = np.exp(np.interp(at, np.arange(curve_db.size), curve_db * np.float32(np.log(10) / 20))).astype(np.float32)
    return np.asarray(scipy.fft.irfft(scipy.fft.rfft(x, length) * gains, length)[: x.size], np.float32)


def reverb(rng: Rng, x: Samples, sample_rate_hz: int = 8000) -> Samples:
    """`[N]` to `[N]`: a small room of 0.1 to 0.5 s, the direct sound first (no delay)."""
    rt60_s = rng.uniform(0.1, 0.5)
    length = int(rt60_s * sample_rate_hz)
    tail = rng.standard_normal(length) * 10.0 ** (-3.0 * np.arange(length) / length)
    tail[: int(0.003 * sample_rate_hz)] = 0.0
    tail *= decibels(-rng.uniform(2.0, 16.0)) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return scipy.signal.oaconvolve(x, tail.astype(np.float32))[: x.size].astype(np.float32)


def channel(rng: Rng, bins: int = 129) -> Samples:
    """`[bins]` factors on the power spectrum: a random smooth equaliser, at times a telephone's band."""
    knots = rng.normal(0.0, rng.uniform(0.0, 7.0), 7)
    curve_db = np.interp(np.linspace(0, 6, bins), np.arange(7), knots) + rng.uniform(-9, 9) * np.linspace(-1, 1, bins)
    if rng.random() < 0.3:
        position = np.linspace(0, 4000, bins)
        low_hz, high_hz = rng.uniform(60, 350), rng.uniform(2800, 3950)
        curve_db -= 12.0 * np.maximum(0, np.log2(low_hz / np.maximum(position, 20)))
        curve_db -= 24.0 * np.maximum(0, np.log2(np.maximum(position, 20) / high_hz))
    return np.asarray(10.0 ** (curve_db / 10.0), np.float32)


@cache
def filterbank(sample_rate_hz: int, window_samples: int, mels: int, warp: float = 1.0) -> NDArray[np.float32]:
    """`[F, mels]` mel weights, Slaney's area norm; another throat's band edges stand at `warp` times the frequency.

    With warp 1 it is librosa's own.
    """
    if warp == 1.0:
        return np.ascontiguousarray(librosa.filters.mel(sr=sample_rate_hz, n_fft=window_samples, n_mels=mels).T)
    edges_hz = librosa.mel_frequencies(mels + 2, fmin=0.0, fmax=sample_rate_hz / 2) * warp
    bins_hz = np.linspace(0.0, sample_rate_hz / 2, 1 + window_samples // 2)
    width_hz = np.diff(edges_hz)
    ramps = edges_hz[None, :] - bins_hz[:, None]
    up, down = -ramps[:, :-2] / width_hz[:-1], ramps[:, 2:] / width_hz[1:]
    weights = np.maximum(0.0, np.minimum(up, down)) * (2.0 / (edges_hz[2:] - edges_hz[:-2]))
    return np.ascontiguousarray(weights, np.float32)
