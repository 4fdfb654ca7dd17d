"""Recordings as streams of chunks: named, cut, and sent when their time has come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.component import Array

Item = tuple[str, Array, bool]
"""A stream, samples, and whether it ends with them: what `Producer.push_many` takes."""


@dataclass(frozen=True)
class Recording:
    """Samples `[N, channels]` that go out as one stream; `skipped` samples before them are stored already."""

    stream: str
    path: Path
    samples: Array
    skipped: int = 0


@dataclass(frozen=True)
class Round:
    """One chunk of every stream that still has one, due when `samples` samples of each have been spoken."""

    samples: int
    items: list[Item]


def stream_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its stem; where stems are equal, as much of its path as tells it apart.

    >>> stream_names([Path("a/x.wav"), Path("b/x.wav"), Path("b/{y}.wav"), Path("b/{y}.wav")])
    ['a/x', 'b/x', '(y)', '(y)#2']
    """
    choices = [
        [_fit(name) for name in (path.stem, f"{path.parent.name}/{path.stem}", str(path.with_suffix("")), str(path))]
        for path in paths
    ]
    taken = [Counter(names) for names in zip(*choices, strict=True)]
    names: list[str] = []
    for mine in choices:
        base = next((name for level, name in enumerate(mine) if taken[level][name] == 1), mine[0])
        name, number = base, 1
        while name in names:
            number += 1
            name = f"{base}#{number}"
        names.append(name)
    return names


def _fit(name: str) -> str:
    """Without what a stream's name may not hold."""
    return "".join(char if char.isprintable() else "_" for char in name).translate(str.maketrans("{}", "()"))


def chunk_samples(chunk_ms: float, sample_rate_hz: float) -> int:
    """Samples of a chunk of that length, at least one, and no more than a pipe can be asked for at once.

    >>> chunk_samples(100, 8000)
    800
    """
    return max(1, round(min(chunk_ms * sample_rate_hz / 1000, 2**31)))


def rounds(recordings: Sequence[Recording], step: int, *, end: bool) -> Iterator[Round]:
    """Cut recordings into chunks of `step` samples, in parallel; with `end`, a stream ends with its last chunk."""
    at = 0
    going = list(recordings)
    while going:
        items = [(r.stream, r.samples[at : at + step], end and at + step >= len(r.samples)) for r in going]
        yield Round(at + max(len(samples) for _, samples, _ in items), items)
        at += step
        going = [recording for recording in going if at < len(recording.samples)]


def paced(
    parts: Iterator[Round],
    sample_rate_hz: float,
    wait: Callable[[float], None] | None = None,
    start_s: float | None = None,
) -> Iterator[Round]:
    """The same rounds at real-time pace: each when its last sample has been spoken, by the wall clock, without drift.

    Args:
        wait: waits until a time of `time.monotonic`, perhaps doing something useful; by default it sleeps.
        start_s: the time of the first sample; by default now.
    """
    start_s = time.monotonic() if start_s is None else start_s
    for part in parts:
        (wait or sleep_until)(start_s + part.samples / sample_rate_hz)
        yield part


def sleep_until(due_s: float) -> None:
    """Sleep until a time of `time.monotonic`; not at all when it has passed."""
    time.sleep(max(0.0, due_s - time.monotonic()))
