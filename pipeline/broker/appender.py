"""Pushing chunks: many in one round trip, and an honest answer about each when something goes wrong.

The chunks of one call that belong to one partition are stored together, in order, or not at all: if the server ran
out of memory between two of them, the second would otherwise look like a gap in its stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import redis
import redis.asyncio

from pipeline.broker.functions import Call, call_many, call_many_async
from pipeline.broker.keys import check_name, check_stream, log_key, partition_of
from pipeline.errors import BacklogFull, BrokerUnavailable, ConfigError


class Pushed(NamedTuple):
    """One chunk on its way: `data` is raw little-endian samples, `seq` counts the chunks of its stream."""

    stream: str
    seq: int
    data: bytes
    end: bool = False


class AppendFailed(BrokerUnavailable):
    """Some chunks may not be stored. Send those of `unknown` and `refused` again, in order, with the same seq.

    Attributes:
        ids: the id of each chunk of the call; None where it is not known to be stored.
        unknown: indices of chunks whose reply was lost: stored or not. The worker drops what comes twice.
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


class _Plan:
    """Chunks grouped by partition into calls, and replies sorted back."""

    def __init__(self, topic: str, partitions: int, max_backlog: int, chunks: Sequence[Pushed]) -> None:
        self.size = len(chunks)
        self.groups: dict[int, list[int]] = {}
        args: dict[int, list[Any]] = {}
        for i, chunk in enumerate(chunks):
            partition = partition_of(check_stream(chunk.stream), partitions)
            self.groups.setdefault(partition, []).append(i)
            args.setdefault(partition, [max_backlog]).extend(
                (chunk.stream, chunk.seq, chunk.data, b"1" if chunk.end else b"")
            )
        self.calls = [Call("sb_append", [log_key(topic, partition)], args[partition]) for partition in self.groups]

    def lost(self, error: BrokerUnavailable) -> AppendFailed:
        everything = list(range(self.size))
        return AppendFailed(f"{self.size} chunks may not be stored: {error}", [None] * self.size, everything, [])

    def settle(self, replies: Sequence[Any]) -> list[bytes]:
        ids: list[bytes | None] = [None] * self.size
        full: list[str] = []
        errors: list[BrokerUnavailable] = []
        for (partition, indices), reply in zip(self.groups.items(), replies, strict=True):
            if isinstance(reply, BrokerUnavailable):
                errors.append(reply)
            elif isinstance(reply, Exception):
                raise reply
            elif reply[0] == b"OK":
                for i, id_ in zip(indices, reply[1:], strict=True):
                    ids[i] = id_
            elif reply[0] == b"FULL":
                full.append(f"partition {partition} has {reply[1]} unread chunks")
            else:
                raise ConfigError(f"chunks were not stored: {reply[1].decode()}")
        refused = [i for i, id_ in enumerate(ids) if id_ is None]
        if errors:
            message = f"{len(refused)} of {self.size} chunks are not stored: {errors[0]}"
            raise AppendFailed(message, ids, [], refused)
        if full:
            message = f"{len(refused)} of {self.size} chunks are not stored: {'; '.join(full)}. Wait, or start workers."
            raise AppendFull(message, ids, refused)
        return [id_ for id_ in ids if id_ is not None]


class Appender:
    """Pushes to a topic of `partitions` partitions. With `max_backlog` > 0, no partition grows beyond so many chunks
    that its slowest group has still to read.

    Example:
        Appender(connect(url), "calls", partitions=4).append([Pushed("call-42", 0, samples.tobytes())])
    """

    def __init__(self, client: redis.Redis, topic: str, partitions: int, max_backlog: int = 0) -> None:
        self._client = client
        self._topic = check_name("topic", topic)
        self._partitions = partitions
        self._max_backlog = max_backlog

    def append(self, chunks: Sequence[Pushed]) -> list[bytes]:
        """Store chunks, in order within each stream. Returns their ids.

        Raises:
            AppendFailed: (a BrokerUnavailable) some are unknown or refused: it says which.
            AppendFull: (a BacklogFull) some are refused: it says which.
            ChunkRejected: a stream's name is not fit; nothing was sent.
        """
        plan = _Plan(self._topic, self._partitions, self._max_backlog, chunks)
        try:
            replies = call_many(self._client, plan.calls)
        except BrokerUnavailable as error:
            raise plan.lost(error) from error
        return plan.settle(replies)


class AsyncAppender:
    """`Appender` for asyncio."""

    def __init__(self, client: redis.asyncio.Redis, topic: str, partitions: int, max_backlog: int = 0) -> None:
        self._client = client
        self._topic = check_name("topic", topic)
        self._partitions = partitions
        self._max_backlog = max_backlog

    async def append(self, chunks: Sequence[Pushed]) -> list[bytes]:
        """Store chunks, in order within each stream. Returns their ids. Raises as `Appender.append`."""
        plan = _Plan(self._topic, self._partitions, self._max_backlog, chunks)
        try:
            replies = await call_many_async(self._client, plan.calls)
        except BrokerUnavailable as error:
            raise plan.lost(error) from error
        return plan.settle(replies)


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
