"""A bundle over a whole recording, without Redis: the same batcher that a worker runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from pipeline.batcher import Batcher
from pipeline.bundle import Bundle, load
from pipeline.component import Array
from pipeline.errors import ChunkRejected, ConfigError
from pipeline.output import Event
from pipeline.samples import carried

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
    bundle: Bundle | str | Path,
    samples: Array,
    *,
    chunk_samples: int | None = None,
    given: Array | None = None,
    rate_hz: float | None = None,
) -> Run:
    """Run a bundle over one recording.

    Args:
        bundle: an open one, or what `load` opens: a path, or the name of a shipped one.
        samples: `[N]` or `[N, channels]`, of the bundle's rate: int16, or float32 in -1..1. They are converted to the
            bundle's sample type as `Producer.push` does it, so that the results are those of the same push.
        chunk_samples: feed it in chunks of this many samples; None feeds it whole.
        rate_hz: of the samples, for a bundle of any rate (`InputSpec.any_rate`); None: the bundle's.
        given: what a producer gives the stream before its first samples (the manifest's `given`), flattened.
    Raises:
        ConfigError: another rate or number of channels; samples that a push refuses; what is given does not fit.
        ManifestError: what was to be opened is no bundle.

    >>> import numpy as np
    >>> run("digits", np.zeros(8000, np.int16)).events
    []
    """
    bundle = bundle if isinstance(bundle, Bundle) else load(bundle)
    spec = bundle.manifest.input
    try:
        signal = carried(samples, spec, bundle.source)
    except ChunkRejected as rejected:
        raise ConfigError(str(rejected)) from None
    rate_hz = spec.sample_rate_hz if rate_hz is None else rate_hz
    if not _is_rate(rate_hz):
        raise ConfigError(
            f"rate_hz is {rate_hz!r}; expected a number above 0; {bundle.source} takes {spec.sample_rate_hz:g} Hz"
        )
    if rate_hz != spec.sample_rate_hz and not spec.any_rate:
        raise ConfigError(f"samples at {rate_hz:g} Hz; {bundle.source} takes {spec.sample_rate_hz:g} Hz: resample them")
    if chunk_samples is not None and not _is_count(chunk_samples):
        raise ConfigError(f"chunks of {chunk_samples} samples; give a whole number, at least 1")
    batcher = Batcher(bundle, max_blocks=_MAX_BLOCKS, keep_scores=True)
    batcher.rate_hz = float(rate_hz)
    rows = np.array([batcher.layout.blank])
    if given is not None:
        expected = bundle.manifest.model.given_bytes // 4
        try:
            values = np.asarray(given, np.float32).reshape(-1)
        except (ValueError, TypeError):
            raise ConfigError(f"given no array of numbers; {bundle.source} takes {expected}, all finite") from None
        if values.size != expected or not np.isfinite(values).all():
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


def _is_rate(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and int(value) >= 1
