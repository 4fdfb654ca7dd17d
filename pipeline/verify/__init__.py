"""Does a bundle keep the promise? The contract's checks on any bundle, whoever made it.

A graph of other operators than LSTM, GRU and MatMul may fail some: dynamic quantisation scales anew in each call, a
convolution may add up otherwise for two streams than for one. Then what is told is by how much, and where.

    subject.py   the signals, and the ways of running them
    checks.py    two ways that differ in one thing, for each thing
    verdict.py   what the differences mean
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.bundle import Bundle
from pipeline.component import Array
from pipeline.verify.checks import CHECKS
from pipeline.verify.subject import Subject
from pipeline.verify.verdict import Check, Verdict, Where, conclusion, exactness, judge


def verify(
    bundle: Bundle,
    recording: Array | None = None,
    *,
    seconds: float | None = None,
    streams: int = 64,
    seed: int = 0,
    tolerance: float | None = None,
) -> Iterator[Check]:
    """Run all checks, one after the other; equal arguments give equal answers.

    Args:
        recording: `[N]` or `[N, channels]` of the bundle's sample type and rate, from which all signals are cut.
            Without it they are random: noise, buzzing, silence.
        seconds: length of a stream (at least 24 blocks). None: some hundred frames.
        streams: how many share a batch.
        tolerance: the largest difference allowed. None: what the manifest states.
    Raises:
        ConfigError: a recording that is not the bundle's input, fewer than two streams.
    """
    subject = Subject(bundle, recording, seconds, streams, seed)
    allowed = bundle.manifest.model.tolerance if tolerance is None else tolerance
    return (judge(name, check(subject), bundle.manifest, allowed) for name, (_, check) in CHECKS.items())


__all__ = ["CHECKS", "Check", "Verdict", "Where", "conclusion", "exactness", "verify"]
