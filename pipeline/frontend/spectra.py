"""Windows of signals to power spectra, by compiled code where it was built, else by scipy.

The compiled code (`_spectra.c`) takes a quarter of the time, and no importing of scipy. It is built where statebelt is
installed, if there is a C compiler. The two ways differ in last bits; each is exact over batches and cuts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.component import Array

try:
    from pipeline.frontend import _spectra
except ImportError:  # no compiler, where this was installed
    _spectra = None  # type: ignore[assignment]

COMPILED = _spectra is not None

Spectra = Callable[[Array, int, Array], None]
"""`(signal, hop, power)`: the spectra of windows of `signal` `[b, n]`, one every `hop` samples, to `power` `[b, t, F]`.
Both are float32 and contiguous."""

_ROWS_AT_A_TIME = 160
"""Windows in one of scipy's transforms: of 512 points, the fastest number measured."""


def spectra(window: Array, *, compiled: bool = COMPILED) -> Spectra:
    """Spectra under `window` `[N]` float32, by the compiled code if it is wanted and N is one of its lengths."""
    if compiled:
        try:
            plan = _spectra.plan(window)
        except ValueError:
            pass  # an odd length, a factor of 7: scipy takes any
        else:
            return lambda signal, hop, power: _spectra.spectra(plan, signal, len(signal), hop, power)
    return _by_scipy(window)


def _by_scipy(window: Array) -> Spectra:
    import scipy.fft

    def write(signal: Array, hop: int, power: Array) -> None:
        stream, sample = signal.strides
        for t in range(0, power.shape[1], _ROWS_AT_A_TIME):
            some = power[:, t : t + _ROWS_AT_A_TIME]
            # All windows of all streams, which overlap, not copied. (sliding_window_view: 9 us, this: half of one.)
            shape, strides = (*some.shape[:2], len(window)), (stream, hop * sample, sample)
            windows = np.ndarray(shape, np.float32, signal, t * hop * sample, strides)
            parts = scipy.fft.rfft(windows * window, axis=-1, overwrite_x=True).view(np.float32)
            np.multiply(parts, parts, out=parts)
            np.add(parts[..., 0::2], parts[..., 1::2], out=some)

    return write
