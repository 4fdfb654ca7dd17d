"""Pushing chunks: many in one round trip, and an honest answer about each when something goes wrong.

The chunks of one call that belong to one partition are stored together, in order, or not at all: if the server ran
out of memory between two of them, the second would otherwise look like a gap in its stream. Chunks of a stream that
somebody else has claimed are refused for themselves, as a whole stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import redis
import redis.asyncio

from pipeline.broker.exchange import Exchange, exchange, exchange_async
from pipeline.broker.functions import Call, call_many
from pipeline.broker.keys import check_stream, log_key, partition_of, stand_key
from pipeline.broker.resp import Word
from pipeline.broker.stand import Terms
from pipeline.errors import BacklogFull, BrokerUnavailable, ConfigError, Fenced


class Given(bytes):
    """Data that are not samples, but what a producer gives a stream (the manifest's `given`): in a chunk of its own."""


class Pushed(NamedTuple):
    """One chunk on its way: `data` is raw little-endian samples (or `Given`), `seq` counts the chunks of its stream.

    `claim` is the one under which its stream was begun or resumed (stand.py); without one, nobody is asked.
    """

    stream: str
    seq: int
    data: bytes
    end: bool = False
    claim: str = ""


class AppendFailed(BrokerUnavailable):
    """Some chunks may not be stored. Send those of `unknown` and `refused` again, in order, with the same seq.

    Attributes:
        ids: the id of each chunk of the call; None where it is not known to be stored.
        unknown: indices of chunks whose reply was lost, or that too few replicas confirmed: stored or not. The
            worker drops what comes twice.
        refused: indices of chunks that are certainly not stored.
    """

    def __init__(self, message: str, ids: list[bytes | None], unknown: list[int], refused: list[int]) -> None:
        super().__init__(message)
        self.ids = ids
        self.unknown = unknown
        self.refused = refused


class AppendFull(BacklogFull):
    """Partitions are at their bound. `refused` are the indices of chunks that are not stored; `ids` as above."""

    def __init__(self, message: str, ids: list[bytes | None], refused: list[int]) -> None:
        super().__init__(message)
        self.ids = ids
        self.refused = refused


class AppendFenced(Fenced):
    """Another producer has claimed some streams. `refused` are the indices of their chunks, none of them stored; all
    others are. `ids` as above."""

    def __init__(self, message: str, ids: list[bytes | None], refused: list[int]) -> None:
        super().__init__(message)
        self.ids = ids
        self.refused = refused


@lru_cache(maxsize=16_384)  # a stream is pushed to again and again
def _home(stream: str, partitions: int) -> int:
    return partition_of(check_stream(stream), partitions)


class Append(Exchange[list[bytes]]):
    """Chunks grouped by partition into calls, and replies sorted back.

    Args:
        terms: topic and bounds. With `replicas`, chunks count as stored once so many have confirmed them; those sent
            again are then not stored again, only confirmed: else a replica that is away would fill the log.
        chunks: in order within each stream.
    """

    def __init__(self, terms: Terms, chunks: Sequence[Pushed]) -> None:
        self._terms = terms
        self._chunks = chunks
        self._groups: dict[int, list[int]] = {}
        for i, chunk in enumerate(chunks):
            self._groups.setdefault(_home(chunk.stream, terms.partitions), []).append(i)
        self.calls = [self._call(partition, group) for partition, group in self._groups.items()]
        # WAIT is about the writes of its own connection: it travels behind the chunks, never by itself.
        self.then = [("WAIT", terms.replicas, terms.replicas_timeout_ms)] if terms.replicas else []

    def _call(self, partition: int, group: list[int]) -> Call:
        terms = self._terms
        stand = stand_key(terms.topic, partition, "")
        keys: list[str] = [terms.log(partition)]
        args: list[Word] = [terms.max_backlog, terms.idle_ms, terms.tombstone_ms, b"1" if terms.replicas else b""]
        for i in group:
            stream, seq, data, end, claim = self._chunks[i]
            keys.append(stand + stream)
            args += (stream, seq, data, b"given" if isinstance(data, Given) else b"1" if end else b"", claim)
        return Call("sb_append", keys, args)

    def lost(self, error: BrokerUnavailable) -> AppendFailed:
        """No reply: all of them are unknown."""
        size = len(self._chunks)
        return AppendFailed(f"{size} chunks may not be stored: {error}", [None] * size, list(range(size)), [])

    def settle(self, replies: Sequence[Any]) -> list[bytes]:
        """The id of each chunk, `b""` where an earlier call had stored it. Raises as `Appender.append`."""
        size = len(self._chunks)
        ids: list[bytes | None] = [None] * size
        full: list[str] = []
        errors: list[BrokerUnavailable] = []
        for (partition, indices), reply in zip(self._groups.items(), replies, strict=False):  # WAIT's may follow
            if isinstance(reply, BrokerUnavailable):
                errors.append(reply)
            elif isinstance(reply, Exception):
                raise reply
            elif reply[0] == b"OK":
                for i, id_ in zip(indices, reply[1:], strict=True):
                    ids[i] = None if isinstance(id_, list) else id_
            elif reply[0] == b"FULL":
                full.append(f"partition {partition} has {reply[1]} unread chunks")
            else:
                raise ConfigError(f"chunks were not stored: {reply[1].decode()}")
        refused = [i for i, id_ in enumerate(ids) if id_ is None]
        said = f"{len(refused)} of {size} chunks are not stored"
        if self.then and replies:
            self._confirm(replies[-1], ids, refused)
        if errors:
            raise AppendFailed(f"{said}: {errors[0]}", ids, [], refused)
        if full:
            raise AppendFull(f"{said}: {'; '.join(full)}. Wait, or start workers.", ids, refused)
        if refused:
            raise AppendFenced(f"{said}: {taken(self._chunks[i].stream for i in refused)}", ids, refused)
        return [id_ for id_ in ids if id_ is not None]

    def _confirm(self, reached: Any, ids: list[bytes | None], refused: list[int]) -> None:
        if isinstance(reached, Exception):
            if not isinstance(reached, BrokerUnavailable):
                raise reached
            reached = 0
        unknown = [i for i, id_ in enumerate(ids) if id_ is not None]
        if unknown and reached < self._terms.replicas:
            raise AppendFailed(
                f"{reached} of {self._terms.replicas} replicas confirmed {len(unknown)} chunks within "
                f"{self._terms.replicas_timeout_ms} ms: send them again, or bring the replicas back",
                [None] * len(ids),
                unknown,
                refused,
            )


def taken(streams: Iterable[str]) -> str:
    """Why chunks of these streams are refused, and what to do."""
    names = list(dict.fromkeys(streams))
    shown = ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"another producer has claimed {shown}. Two producers push one stream: stop one of them; to go on with this "
        f"one, ask where the stream stands: resume(stream)"
    )


class Appender:
    """Pushes to a topic of `partitions` partitions. With `max_backlog` > 0, no partition grows beyond so many chunks
    that its slowest group has still to read.

    Example:
        Appender(connect(url), "calls", partitions=4).append([Pushed("call-42", 0, samples.tobytes())])
    """

    def __init__(self, client: redis.Redis, topic: str, partitions: int, max_backlog: int = 0) -> None:
        self._client = client
        self._terms = Terms(topic, partitions, max_backlog)

    def append(self, chunks: Sequence[Pushed]) -> list[bytes]:
        """Store chunks, in order within each stream. Returns their ids.

        Raises:
            AppendFailed: (a BrokerUnavailable) some are unknown or refused: it says which.
            AppendFull: (a BacklogFull) some are refused: it says which.
            AppendFenced: (a Fenced) their streams are claimed by another producer: it says which.
            ChunkRejected: a stream's name is not fit; nothing was sent.
        """
        return exchange(self._client, Append(self._terms, chunks))


class AsyncAppender:
    """`Appender` for asyncio."""

    def __init__(self, client: redis.asyncio.Redis, topic: str, partitions: int, max_backlog: int = 0) -> None:
        self._client = client
        self._terms = Terms(topic, partitions, max_backlog)

    async def append(self, chunks: Sequence[Pushed]) -> list[bytes]:
        """Store chunks, in order within each stream. Returns their ids. Raises as `Appender.append`."""
        return await exchange_async(self._client, Append(self._terms, chunks))


def backlog(client: redis.Redis, topic: str, partitions: int) -> dict[int, int]:
    """Unread chunks of every partition: the lag of its slowest group, or all that it holds when it has no group.

    Exact while groups move by commits; an upper bound (the log's length) where a group was moved by hand.

    Raises:
        BrokerUnavailable: no answer; call again.
    """
    calls = [Call("sb_backlog", [log_key(topic, partition)], []) for partition in range(partitions)]
    counts = call_many(client, calls)
    for count in counts:
        if isinstance(count, Exception):
            raise count
    return dict(enumerate(counts))
