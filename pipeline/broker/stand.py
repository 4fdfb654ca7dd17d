"""Where streams stand on their producers' side: which number is next, how much is stored, and who may push.

The server keeps a stand for each stream (a string, see keys.py) and writes it in the same act as every chunk. So it is
never ahead of the log nor behind it, whatever dies; what groups read, commit and trim does not touch it; and to ask
costs the same whatever the log holds. It lives for `idle_ms` after the last chunk (`tombstone_ms` after an end), as
the stream's state does.

A claim names a producer and says which of its claims this is (`<producer>/<number>`). Chunks are stored under the claim
that is in force, and under no other: the last to begin or to resume a stream has it, whoever had it before is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.broker.connection import raise_first
from pipeline.broker.exchange import Exchange
from pipeline.broker.functions import Call
from pipeline.broker.keys import check_name, check_stream, log_key, partition_of, stand_key
from pipeline.broker.resp import Value


@dataclass(frozen=True, slots=True)
class Terms:
    """What all pushes of a producer have in common.

    Attributes:
        max_backlog: unread chunks that a partition may hold; 0: no bound.
        replicas: how many must have a chunk before it counts as stored, within `replicas_timeout_ms`.
        idle_ms, tombstone_ms: how long the stand of a live, of an ended stream is kept.
    """

    topic: str
    partitions: int
    max_backlog: int = 0
    replicas: int = 0
    replicas_timeout_ms: int = 1000
    idle_ms: int = 3_600_000
    tombstone_ms: int = 600_000

    def __post_init__(self) -> None:
        check_name("topic", self.topic)

    def log(self, partition: int) -> str:
        """The key of a partition's log."""
        return log_key(self.topic, partition)

    def stand(self, stream: str) -> str:
        """The key of a stream's stand."""
        return stand_key(self.topic, partition_of(check_stream(stream), self.partitions), stream)


class Begun(NamedTuple):
    """The number of a stream's next chunk, the claim to push it under, and whether its life `goes_on`."""

    next_seq: int
    claim: str
    goes_on: bool


class Begin(Exchange[dict[str, Begun]]):
    """Numbers for streams that this producer does not know (any more): a new life of each, or, where it is the same
    producer's, the life that goes on. Sent again after a lost reply it answers the same."""

    def __init__(self, terms: Terms, streams: Sequence[str], claim: str) -> None:
        self._groups: dict[int, list[str]] = {}
        for stream in streams:
            self._groups.setdefault(partition_of(check_stream(stream), terms.partitions), []).append(stream)
        args: list[Value] = [claim, terms.idle_ms]
        self.calls = [Call("sb_begin", [terms.stand(s) for s in group], args) for group in self._groups.values()]

    def settle(self, replies: Sequence[Any]) -> dict[str, Begun]:
        """Raises BrokerUnavailable (send it again), ConfigError."""
        found: dict[str, Begun] = {}
        for group, reply in zip(self._groups.values(), raise_first(list(replies)), strict=True):
            for stream, (seq, claim, goes_on) in zip(group, reply, strict=True):
                found[stream] = Begun(int(seq), claim.decode(), bool(goes_on))
        return found


class Stand(NamedTuple):
    """The number after a stream's last chunk, the bytes that are stored of its life, and whether that has ended."""

    next_seq: int
    size_bytes: int
    ended: bool


class Resume(Exchange[Stand | None]):
    """Where a stream stands, claimed in the same act; None where nothing is known of it."""

    def __init__(self, terms: Terms, stream: str, claim: str) -> None:
        self.claim = claim
        self.calls = [Call("sb_resume", [terms.stand(stream)], [claim])]

    def settle(self, replies: Sequence[Any]) -> Stand | None:
        """Raises BrokerUnavailable (send it again), ConfigError."""
        kind, *rest = raise_first(list(replies))[0]
        return None if kind == b"NONE" else Stand(int(rest[0]), int(rest[1]), kind == b"ENDED")
