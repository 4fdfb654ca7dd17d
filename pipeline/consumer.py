"""Consumers: results of a group as they come. Blocking and asyncio."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np

from pipeline.arguments import seconds
from pipeline.broker import topic as topics
from pipeline.broker.connection import connect, connect_async
from pipeline.broker.failover import History
from pipeline.broker.keys import check_stream
from pipeline.broker.results import AsyncResultReader, ResultReader, last_results
from pipeline.broker.results import Result as Stored
from pipeline.component import Array
from pipeline.errors import ChunkRejected, ConfigError, TimedOut
from pipeline.logs import logger
from pipeline.output import Event
from pipeline.settings import load_settings


@dataclass(frozen=True, slots=True)
class Result:
    """What one chunk brought about.

    Attributes:
        partition, id: where it stands; `id` is the id of the chunk in the input log. For the world outside, a
            result's identity is (stream, seq): after a failover that lost its tail, a chunk sent again has a new id.
        stream, seq: of the chunk.
        events: what was recognised, in order.
        scores: float32 `[T, C]` where the bundle's head publishes scores, else None.
        samples: float32 `[n]`, the audio that the chunk completed, where the bundle's head makes some, else None. All
            of a stream, in order, are as many as were pushed; a stream that started afresh begins anew.
        end: the stream ended with this chunk.
        notes: what happened to the stream: `gap`, `expired`, `row_corrupt`, `broken`, `not_given`, each with its facts.
    """

    partition: int
    id: str
    stream: str
    seq: int
    events: list[Event]
    scores: Array | None
    samples: Array | None
    end: bool
    notes: list[dict[str, Any]]


def decode(stored: Stored) -> Result:
    """An entry of a results log, typed. Raises ConfigError if no worker of ours can have written it."""
    fields = stored.fields
    try:
        scores, notes = fields.get(b"scores"), json.loads(fields.get(b"notes", b"[]"))
        if not isinstance(notes, list):
            raise TypeError(f"notes are of type {type(notes).__name__}, not a list")
        samples = np.frombuffer(fields[b"samples"], "<f4") if b"samples" in fields else None
        if samples is not None and not np.isfinite(samples).all():
            raise ValueError("samples hold NaN or infinity")
        return Result(
            partition=stored.partition,
            id=stored.id.decode(),
            stream=fields[b"stream"].decode(),
            seq=int(fields[b"seq"]),
            events=[Event(**event) for event in json.loads(fields[b"events"])],
            scores=None
            if scores is None
            else np.frombuffer(scores, "<f4").reshape([int(n) for n in fields[b"shape"].split(b",")]),
            samples=samples,
            end=b"end" in fields,
            notes=notes,
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"entry {stored.id.decode()} of partition {stored.partition}'s results is none of ours "
            f"({repr(error)[:200]}): another program writes to this log"
        ) from None


class _Base:
    def __init__(
        self,
        topic: str,
        group: str,
        *,
        url: str | None = None,
        start: Literal["now", "beginning"] | Mapping[int, bytes] = "now",
        stream: str | None = None,
    ) -> None:
        if not isinstance(start, Mapping) and start not in ("now", "beginning"):
            raise ConfigError(f"start is {start!r}; expected 'now', 'beginning', or the offsets of an earlier consumer")
        if stream is not None:
            try:
                check_stream(stream)
            except ChunkRejected as rejected:  # no such stream ever has a result
                raise ConfigError(str(rejected)) from None
        self._url = load_settings(url=url).redis_url
        self._history = History(replicas=True)
        client = connect(self._url, history=self._history)
        try:
            found = topics.describe(client, topic)
            if found is None:
                raise ConfigError(f"there is no topic {topic!r}; a worker or a producer creates it")
            if start == "now":  # an id from here on: what comes before the first read is read, and `offsets` are known
                start = last_results(client, topic, group, found.partitions)
        finally:
            client.close()
        self.topic = found
        self.skipped = 0
        self._closed = False
        self._stream, self._group = stream, group
        self._log = logger(topic=topic, group=group)
        self._pending: deque[Result] = deque()
        self._handed_out: dict[int, bytes] = {}
        self._connect(topic, group, start)

    def _connect(self, topic: str, group: str, start: Literal["now", "beginning"] | Mapping[int, bytes]) -> None:
        raise TypeError("use Consumer or AsyncConsumer")

    @property
    def _left_at(self) -> dict[int, bytes]:
        """Where an iteration that was left early stands; empty where there was none."""
        return dict(self._handed_out) if self._pending else {}

    def _check_open(self) -> None:
        """A closed client would connect again, and be left behind."""
        if self._closed:
            raise ConfigError(
                "this consumer is closed: read before close(), or make another Consumer (with `offsets` of this one "
                "as its `start`, it goes on where this one stopped)"
            )

    def _no_end(self, stream: str, timeout_s: float | None) -> TimedOut:
        return TimedOut(
            f"stream {stream!r} has not ended within {timeout_s} s. Expected results of group {self._group!r} on topic "
            f"{self.topic.name!r}: does a worker run (`statebelt topics`), was the end pushed? If so, wait longer"
        )

    def _mine(self, stored: list[Stored]) -> list[Result]:
        """Results of the streams that are wanted. What is no result is told and passed over, never its neighbours."""
        wanted = None if self._stream is None else self._stream.encode()
        found, skipped, why = [], 0, ""
        for entry in stored:
            if wanted is None or entry.fields.get(b"stream") == wanted:
                try:
                    found.append(decode(entry))
                except ConfigError as error:
                    skipped, why = skipped + 1, str(error)
        if skipped:  # one line a read, however many another program wrote
            self.skipped += skipped
            self._log.warning("entries_skipped", count=skipped, total=self.skipped, last=why)
        return found

    def _rest(self) -> list[Result]:
        """What an iteration that was left early did not hand out."""
        rest = list(self._pending)
        self._pending.clear()
        return rest

    def _one_by_one(self, results: Sequence[Result], before: Mapping[int, bytes]) -> Iterator[Result]:
        """Hand out results that were read behind `before`, and keep count: the loop's body may save `offsets`, or
        break."""
        self._pending, self._handed_out = deque(results), dict(before)
        while self._pending:
            result = self._pending.popleft()
            self._handed_out[result.partition] = result.id.encode()
            yield result


class Consumer(_Base):
    """Reads the results of `group` on `topic`, all partitions: in order within each stream.

    Args:
        url: Redis; by default what the settings say.
        start: `now` (what comes from here on), `beginning` (what is still kept), or `offsets` of an earlier consumer.
        stream: only this one.
    Attributes:
        topic: what the topic carries.
        skipped: entries passed over, because no worker of ours can have written them; a warning tells of them.
    Raises:
        ConfigError: no such topic, or no name of a stream. BrokerUnavailable: no Redis.

    >>> consumer = Consumer("calls", "digits", url=url, start="beginning")
    >>> [result.end for result in consumer.read(timeout_s=10) if result.stream == "call-1"]
    [True]
    >>> consumer.close()
    """

    def _connect(self, topic: str, group: str, start: Literal["now", "beginning"] | Mapping[int, bytes]) -> None:
        self._client = connect(self._url, history=self._history)
        self._reader = ResultReader(self._client, topic, group, self.topic.partitions, start, self._history)

    @property
    def offsets(self) -> dict[int, bytes]:
        """The id of the last result handed out of each partition, from the beginning on (before the first one: where
        this consumer began). Pass it as `start` to go on later. It steps back while results are read again after a
        failover or a restart of Redis: who goes on from there gets some of them twice, by (stream, seq) the same."""
        return dict(self._handed_out) if self._pending else self._reader.offsets

    def open(self) -> None:
        """Nothing is left to be done: what `now` is was fixed when this consumer was made."""
        self._check_open()
        self._reader.open()

    def read(self, timeout_s: float = 1.0) -> list[Result]:
        """Results since the last read; returns as soon as there is one, or empty after `timeout_s`.

        Raises BrokerUnavailable: read again, nothing is skipped.
        """
        self._check_open()
        seconds("timeout_s", timeout_s)
        if self._pending:
            return self._rest()
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_ms = int(min(deadline_s - time.monotonic(), 1.0) * 1000)
            found = self._mine(self._reader.read(block_ms=max(0, left_ms)))
            if found or left_ms <= 0:
                return found

    def __iter__(self) -> Iterator[Result]:
        """Results for ever. Leave the loop when you like: the next one goes on behind it."""
        self.open()
        while True:
            left_at = self._left_at
            found = self.read()
            yield from self._one_by_one(found, left_at or self._reader.offsets_before)

    def until_end(self, stream: str, timeout_s: float | None = None) -> Iterator[Result]:
        """Results of one stream, up to its end. Those of others on the way are passed over.

        Waits for ever, or raises TimedOut when nothing more of it is there after `timeout_s` and it has not ended: what
        came was handed out, and another call goes on behind it.
        """
        if timeout_s is not None:
            seconds("timeout_s", timeout_s)
        self.open()
        due_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_at, left_s = self._left_at, due_s - time.monotonic()
            found = self.read(max(0.0, min(left_s, 1.0)))
            for result in self._one_by_one(found, left_at or self._reader.offsets_before):
                if result.stream == stream:
                    yield result
                    if result.end:
                        return
            if left_s <= 0 and not any(result.stream == stream for result in found):
                raise self._no_end(stream, timeout_s)

    def close(self) -> None:
        """Close the connection. `offsets` can still be asked; whoever reads on gets a ConfigError."""
        self._closed = True
        self._client.close()

    def __enter__(self) -> Consumer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncConsumer(_Base):
    """`Consumer` for asyncio: the same arguments and rules. Creating it talks to Redis once, blocking.

    >>> async def listen():
    ...     async with AsyncConsumer("calls", "digits", url=url, start="beginning") as consumer:
    ...         return [result.stream async for result in consumer.until_end("call-2")]
    >>> asyncio.run(listen())
    ['call-2']
    """

    def _connect(self, topic: str, group: str, start: Literal["now", "beginning"] | Mapping[int, bytes]) -> None:
        self._client = connect_async(self._url, history=self._history)
        self._reader = AsyncResultReader(self._client, topic, group, self.topic.partitions, start, self._history)

    @property
    def offsets(self) -> dict[int, bytes]:
        """As `Consumer.offsets`."""
        return dict(self._handed_out) if self._pending else self._reader.offsets

    async def open(self) -> None:
        """As `Consumer.open`."""
        self._check_open()
        await self._reader.open()

    async def read(self, timeout_s: float = 1.0) -> list[Result]:
        """As `Consumer.read`."""
        self._check_open()
        seconds("timeout_s", timeout_s)
        if self._pending:
            return self._rest()
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_ms = int(min(deadline_s - time.monotonic(), 1.0) * 1000)
            found = self._mine(await self._reader.read(block_ms=max(0, left_ms)))
            if found or left_ms <= 0:
                return found

    async def __aiter__(self) -> AsyncIterator[Result]:
        """As iterating a `Consumer`."""
        await self.open()
        while True:
            left_at = self._left_at
            found = await self.read()
            for result in self._one_by_one(found, left_at or self._reader.offsets_before):
                yield result

    async def until_end(self, stream: str, timeout_s: float | None = None) -> AsyncIterator[Result]:
        """As `Consumer.until_end`."""
        if timeout_s is not None:
            seconds("timeout_s", timeout_s)
        await self.open()
        due_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_at, left_s = self._left_at, due_s - time.monotonic()
            found = await self.read(max(0.0, min(left_s, 1.0)))
            for result in self._one_by_one(found, left_at or self._reader.offsets_before):
                if result.stream == stream:
                    yield result
                    if result.end:
                        return
            if left_s <= 0 and not any(result.stream == stream for result in found):
                raise self._no_end(stream, timeout_s)

    async def close(self) -> None:
        """As `Consumer.close`."""
        self._closed = True
        await self._client.aclose()

    async def __aenter__(self) -> AsyncConsumer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
