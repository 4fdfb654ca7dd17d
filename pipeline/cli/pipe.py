"""`statebelt push -`: raw PCM from standard input, as one stream."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from pipeline.cli import interrupt
from pipeline.cli.console import out, say_warning
from pipeline.cli.told import finish, progress, report

if TYPE_CHECKING:
    from pipeline.cli.target import Target
    from pipeline.component import Array
    from pipeline.producer import Standing


def push_stdin(
    target: Target,
    stream: str,
    speed: float | None,
    chunk_ms: float,
    end: bool,
    resume: bool,
    values: Array | None,
    as_json: bool,
) -> None:
    """Push what comes, until it ends; at `speed` times real time, without one as fast as it comes.

    With `resume`, standard input is the same signal again, from its beginning: what the stream holds is passed over.
    """
    from pipeline import audio
    from pipeline.cli.playback import chunk_samples, sleep_until
    from pipeline.errors import AudioError

    rate_hz = target.spec.sample_rate_hz
    step = chunk_samples(chunk_ms, rate_hz)
    chunks = audio.pcm(sys.stdin.buffer, target.spec, step)
    first = next(chunks, None)  # what it begins with is looked at before anything is sent
    if first is None and target.producer is None:
        raise AudioError(
            f"standard input held nothing, and there is no topic {target.topic!r}: nothing was pushed. Did the command "
            "before the pipe fail?"
        )
    producer, ended, skipped = target.open(), False, 0
    chunks = chain([] if first is None else [first], chunks)
    if resume:
        stand = producer.resume(stream)
        chunks = _what_is_missing(chunks, stand, rate_hz)
        ended, skipped = stand.ended, stand.samples
    if values is not None and not ended:
        producer.give(stream, values)
    began_s, samples, last, count = time.monotonic(), 0, -1, 0
    try:
        with progress(as_json) as bar:
            job = bar.add_task("pushing", total=None)
            for chunk in chunks:
                interrupt.check()
                samples += len(chunk)
                count += 1
                if speed:
                    sleep_until(began_s + samples / rate_hz / speed)
                last = producer.push(stream, chunk)
                bar.advance(job, len(chunk) / rate_hz)
    finally:  # also when it was interrupted: what was said so far is decided
        if end and not ended:
            last = producer.end(stream)
    finish(producer, as_json)
    if as_json:
        report(producer, stream, samples, count, last, skipped)
        return
    stored = "; it was already stored to its end" if ended else ""
    out.print(
        f"pushed {samples / rate_hz:.1f} s of signal to stream {stream!r} of topic {producer.topic!r}{stored}",
        highlight=False,
    )


def _what_is_missing(chunks: Iterator[Array], stand: Standing, rate_hz: float) -> Iterator[Array]:
    """The chunks behind what the stream holds. Raises ConfigError where it cannot have been this signal."""
    from pipeline.errors import ConfigError

    held = f"{stand.samples / rate_hz:.2f} s"
    other = "it was another signal. Name another --stream, or leave out --resume"
    if stand.samples:  # a microphone says nothing twice: who pipes one is to know
        say_warning(
            f"standard input is taken for the same signal again: its first {held}, which stream {stand.stream!r} "
            "holds, are passed over. Of a live source, leave out --resume"
        )
    left, rest = stand.samples, chunks
    for chunk in chunks:
        if len(chunk) > left:
            rest, left = chain([chunk[left:]], chunks), 0
            break
        left -= len(chunk)
    if left:
        had = (stand.samples - left) / rate_hz
        raise ConfigError(f"stream {stand.stream!r} holds {held}, but standard input had only {had:.2f} s: {other}")
    if stand.ended and next(rest, None) is not None:
        raise ConfigError(f"stream {stand.stream!r} has ended after {held}, but standard input goes on: {other}")
    return rest
