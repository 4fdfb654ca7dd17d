"""What comes of a chunk. Apart from the batcher that makes it: who only reads results loads no library of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.component import Array


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that was recognised: `label` from `start_s` to `end_s` of its stream, `score` in 0..1."""

    label: str
    start_s: float
    end_s: float
    score: float


@dataclass(slots=True)
class Output:
    """What one chunk brought about.

    events: in the order in which they were completed. scores: `[T, C]` float32 if they were asked for.
    samples: `[n]` float32, the audio of a head that yields some: as many in all as the stream has.
    broken: the state became non-finite, so the row was reset and the rest of the chunk skipped.
    """

    events: Sequence[Event] = ()
    scores: Sequence[Array] = ()
    samples: Sequence[Array] = ()
    broken: bool = False
