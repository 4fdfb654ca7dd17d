"""Windows of signals to power spectra, by compiled code where it was built, else by scipy.

The compiled code (`_spectra.c`) takes a quarter of the time, and no importing of scipy. It is built where statebelt is
installed, if there is a C compiler. The two ways differ in last bits; each is exact over batches and cuts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pipeline.component import Array, as_float

try:
    from pipeline.frontend import _spectra
except ImportError:  # no compiler, where this was installed
    _spectra = None  # type: ignore[assignment]

COMPILED = _spectra is not None

Spectra = Callable[[Array, Array, Array, Array], None]
"""`(context, samples, power, after)`: the spectra of all windows of signals to `power` `[b, t, F]`.

`context` `[b, N - hop]` lies behind them, `samples` `[b, t * hop]` come; what then lies behind them goes to `after`.
These are int16 or float32, all alike; `power` is float32, and all are contiguous."""

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
            return partial(_by_plan, plan)
    return _by_scipy(window)


def _by_plan(plan: Any, context: Array, samples: Array, power: Array, after: Array) -> None:
    if len(context):
        _spectra.spectra(plan, len(context), context, samples, samples.dtype == np.int16, power, after)


def _by_scipy(window: Array) -> Spectra:
    import scipy.fft

    def write(context: Array, samples: Array, power: Array, after: Array) -> None:
        batch, frames, _ = power.shape
        hop = len(window) - context.shape[1]
        # A slice of the batch after the other stays inside the core's cache. Rows are independent: no byte changes.
        streams = max(1, _ROWS_AT_A_TIME // max(1, frames))
        for b in range(0, batch, streams):
            some = slice(b, b + streams)
            heard = np.concatenate([context[some], samples[some]], axis=1)
            after[some] = heard[:, samples.shape[1] :]
            signal = as_float(heard)
            stream, sample = signal.strides
            for t in range(0, frames, _ROWS_AT_A_TIME):
                now = power[some, t : t + _ROWS_AT_A_TIME]
                # All windows, which overlap, not copied. (sliding_window_view: 9 us, this: half of one.)
                shape, strides = (*now.shape[:2], len(window)), (stream, hop * sample, sample)
                windows = np.ndarray(shape, np.float32, signal, t * hop * sample, strides)
                parts = scipy.fft.rfft(windows * window, axis=-1, overwrite_x=True).view(np.float32)
                np.multiply(parts, parts, out=parts)
                np.add(parts[..., 0::2], parts[..., 1::2], out=now)

    return write
