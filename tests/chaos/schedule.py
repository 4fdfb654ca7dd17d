"""Which faults come when, drawn from a seed: the same seed, counts and seconds give the same schedule."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple


@dataclass(frozen=True)
class Counts:
    """How many of each fault.

    kills: SIGKILL of a worker that holds partitions; another is started. leaves: SIGTERM, none is started. joins: one
    more is started. freezes: SIGSTOP beyond the lease, then SIGCONT. server_kills: SIGKILL of Redis, started again on
    its data. cuts: a reply lost, a reply or a request cut in the middle, all connections reset. delays: a request or
    reply held back, some beyond the lease. producer_kills: SIGKILL of a producer, started again some pushes back.
    failovers: the replica takes over; the primary is killed, or goes on and is told late.
    """

    kills: int
    leaves: int
    joins: int
    freezes: int
    server_kills: int
    cuts: int
    delays: int
    producer_kills: int
    failovers: int = 0

    @classmethod
    def of(cls, minutes: float, *, pair: bool = False) -> Counts:
        """As many as this machine does in so many minutes; at 12 minutes what issue 3 asks for, and some more.

        pair: of a primary and its replica the server is not killed, but fails over.
        """

        def rounded(per_minute: float) -> int:
            return max(1, round(per_minute * minutes))

        return cls(
            kills=rounded(17.5),
            leaves=rounded(3),
            joins=rounded(3),
            freezes=rounded(2.0),
            server_kills=0 if pair else rounded(1.85),
            cuts=rounded(6),
            delays=rounded(3),
            producer_kills=rounded(2),
            failovers=rounded(3) if pair else 0,
        )


class Event(NamedTuple):
    """One fault: when, what, and three numbers in 0..1 from which its target and its size are chosen."""

    at_s: float
    kind: str
    pick: float
    size: float
    way: float


def draw(seed: int, counts: Counts, seconds: float) -> list[Event]:
    """The faults in order of time. Each kind is spread over the whole run, at random within its even share of it."""
    rng = random.Random(seed)
    return sorted(
        event for field in fields(counts) for event in _spread(rng, field.name, getattr(counts, field.name), seconds)
    )


def _spread(rng: random.Random, kind: str, count: int, seconds: float) -> Iterator[Event]:
    for n in range(count):
        yield Event((n + rng.random()) / count * seconds, kind, rng.random(), rng.random(), rng.random())
