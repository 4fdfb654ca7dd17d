"""A bundle over a whole recording, without Redis: the same batcher that a worker runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.batcher import Batcher, Event
from pipeline.bundle import Bundle
from pipeline.component import Array
from pipeline.errors import ConfigError

_MAX_BLOCKS = 4096
"""In one model step: what a step needs while it runs grows with them (attention: 64 KB a frame), and hours are long."""


@dataclass(frozen=True)
class Run:
    """What a recording of N samples yielded: its length, its events, every frame's scores `[T, C]`, and audio `[N]`
    float32 where the bundle's head makes some, else None."""

    seconds: float
    events: list[Event]
    scores: Array
    samples: Array | None


def run(
    bundle: Bundle,
    samples: Array,
    *,
    chunk_samples: int | None = None,
    given: Array | None = None,
    rate_hz: float | None = None,
) -> Run:
    """Run a bundle over one recording.

    Args:
        samples: `[N]` or `[N, channels]`, of the bundle's sample type and rate.
        chunk_samples: feed it in chunks of this many samples; None feeds it whole.
        rate_hz: of the samples, for a bundle of any rate (`InputSpec.any_rate`); None: the bundle's.
        given: what a producer gives the stream before its first samples (the manifest's `given`), flattened.
    Raises:
        ConfigError: another sample type, rate or number of channels; values that are not finite; what is given does not
            fit.

    >>> from pipeline import load
    >>> import numpy as np
    >>> run(load("digits"), np.zeros(8000, np.int16)).events
    []
    """
    spec = bundle.manifest.input
    samples = np.asarray(samples)
    signal = samples[:, None] if samples.ndim == 1 else samples
    if signal.dtype != spec.sample_type or signal.ndim != 2 or signal.shape[1] != spec.channels:
        raise ConfigError(
            f"samples are {samples.dtype} of shape {list(samples.shape)}; {bundle.source} takes {spec.sample_type} "
            f"[N, {spec.channels}]"
        )
    rate_hz = rate_hz or spec.sample_rate_hz
    if rate_hz != spec.sample_rate_hz and not spec.any_rate:
        raise ConfigError(f"samples at {rate_hz:g} Hz; {bundle.source} takes {spec.sample_rate_hz:g} Hz: resample them")
    if not np.isfinite(signal).all():
        raise ConfigError("the samples hold NaN or infinity; repair the recording first")
    if chunk_samples is not None and chunk_samples < 1:
        raise ConfigError(f"chunks of {chunk_samples} samples; give at least 1")
    batcher = Batcher(bundle, max_blocks=_MAX_BLOCKS, keep_scores=True)
    batcher.rate_hz = rate_hz
    rows = np.array([batcher.layout.blank])
    if given is not None:
        values = np.asarray(given, np.float32).reshape(-1)
        if values.size * 4 != bundle.manifest.model.given_bytes or not np.isfinite(values).all():
            expected = bundle.manifest.model.given_bytes // 4
            raise ConfigError(f"given {values.size} values; {bundle.source} takes {expected}, all finite")
        batcher.give(rows[0], values)
    step = chunk_samples or max(1, len(signal))
    events: list[Event] = []
    scores: list[Array] = []
    audio: list[Array] = [np.empty(0, np.float32)]
    starts = list(range(0, len(signal), step)) or [0]
    for start in starts:
        (output,) = batcher.run(rows, [signal[start : start + step]], np.array([start == starts[-1]]))
        if output.broken:
            raise ConfigError(
                f"{bundle.source}: the state became non-finite near {start / batcher.rate_hz:.2f} s; "
                "a worker would start this stream afresh there"
            )
        events += output.events
        scores += output.scores
        audio += output.samples
    empty = np.empty((0, bundle.manifest.model.classes), np.float32)
    made = np.concatenate(audio) if bundle.head.publishes_samples else None
    return Run(len(signal) / batcher.rate_hz, events, np.concatenate([empty, *scores]), made)
