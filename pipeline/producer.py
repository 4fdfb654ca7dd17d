"""Producers: samples into a topic. Blocking and asyncio, the same rules."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import numpy as np
import pydantic

from pipeline.broker import topic as topics
from pipeline.broker.appender import Appender, AppendFailed, AppendFull, AsyncAppender, Pushed
from pipeline.broker.connection import TIMEOUT_S, check_server, connect, connect_async, translate
from pipeline.broker.keys import partition_of
from pipeline.component import Array
from pipeline.errors import BacklogFull, BrokerUnavailable, ConfigError
from pipeline.manifest import InputSpec
from pipeline.outbox import Outbox
from pipeline.settings import load_settings

Item = tuple[str, Array, bool]
"""A stream, its samples, and whether it ends with them."""

_WAIT_S = 0.02


def _topic(
    name: str,
    url: str,
    sample_rate_hz: float | None,
    sample_type: Literal["int16", "float32"],
    channels: int,
    partitions: int,
    any_partitions: bool,
) -> topics.Topic:
    """Create the topic, or find it and compare. Once for a producer's life, so blocking in both forms."""
    client = connect(url)
    try:
        check_server(client)
        if sample_rate_hz is None:
            found = topics.describe(client, name)
            if found is None:
                raise ConfigError(f"there is no topic {name!r} yet; say sample_rate_hz (and channels) to create it")
            return found
        wanted = topics.Topic(name, sample_rate_hz, sample_type, channels, partitions)
        _spec(wanted)  # before it is written for all to see
        return topics.create(client, wanted, any_partitions=any_partitions)
    finally:
        client.close()


def _spec(topic: topics.Topic) -> InputSpec:
    try:
        return InputSpec(sample_rate_hz=topic.sample_rate_hz, channels=topic.channels, sample_type=topic.sample_type)
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{item['loc'][0]} {item['input']}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"topic {topic.name!r}: {faults}") from None


class _Base:
    """Settings and numbering of both forms."""

    def __init__(
        self,
        topic: str,
        *,
        url: str | None = None,
        sample_rate_hz: float | None = None,
        sample_type: Literal["int16", "float32"] = "int16",
        channels: int = 1,
        partitions: int | None = None,
        max_backlog: int | None = None,
        when_full: Literal["block", "refuse"] = "block",
        timeout_s: float = 10.0,
        max_chunk_bytes: int | None = None,
    ) -> None:
        given = load_settings(url=url)
        max_backlog = given.max_backlog if max_backlog is None else max_backlog
        if when_full not in ("block", "refuse") or max_backlog < 0:
            raise ConfigError(
                f"when_full {when_full!r}, max_backlog {max_backlog}; expected block or refuse; 0 (no bound) or more"
            )
        self._url = given.redis_url
        wanted = given.partitions if partitions is None else partitions
        found = _topic(topic, self._url, sample_rate_hz, sample_type, channels, wanted, partitions is None)
        self.topic = topic
        self.partitions = found.partitions
        self.spec = _spec(found)
        self.resent = 0
        self._max_backlog = max_backlog
        self._when_full = when_full
        self._timeout_s = timeout_s
        # A server that is silent, not gone, must not hold a push for longer than it was given.
        self._reply_timeout_s = min(TIMEOUT_S, max(1.0, timeout_s))
        self._outbox = Outbox(self.spec, given.max_chunk_bytes if max_chunk_bytes is None else max_chunk_bytes)
        self._connect()

    def _connect(self) -> None:
        raise TypeError("use Producer or AsyncProducer")

    def _late(self, since_s: float) -> bool:
        return time.monotonic() - since_s > self._timeout_s

    def _pack(self, items: Sequence[Item]) -> list[list[Pushed]]:
        names = [stream for stream, _, _ in items]
        if len(set(names)) < len(names):
            raise ConfigError(f"a stream stands twice in one push_many ({len(names)} items): join its samples")
        packed = [self._outbox.pack(*item) for item in items]
        if 0 < self._max_backlog < sum(map(len, packed)):
            together = Counter(partition_of(chunk.stream, self.partitions) for part in packed for chunk in part)
            partition, most = together.most_common(1)[0]
            if most > self._max_backlog:
                raise ConfigError(
                    f"a push of {most} chunks to partition {partition} never fits max_backlog {self._max_backlog}: "
                    "push less at a time, or raise it"
                )
        return packed

    def _after(self, error: BrokerUnavailable | BacklogFull, chunks: list[Pushed], since_s: float) -> list[Pushed]:
        """What to send again after a failure; raises when it is time to tell the caller."""
        late = self._late(since_s)
        if isinstance(error, AppendFull):
            again = [chunks[i] for i in error.refused]
            give_up = self._when_full == "refuse" or late
        elif isinstance(error, AppendFailed):
            again = [chunks[i] for i in sorted({*error.unknown, *error.refused})]
            give_up = late
        else:
            again, give_up = chunks, True
        kept = {id(chunk) for chunk in again}
        self._outbox.stored([chunk for chunk in chunks if id(chunk) not in kept])
        if give_up:
            raise error
        self.resent += 0 if isinstance(error, AppendFull) else len(again)
        return again


class Producer(_Base):
    """Pushes samples of streams into a topic, in order, and resends safely.

    Args:
        topic: its name.
        url: Redis; by default what the settings say.
        sample_rate_hz, sample_type, channels, partitions: what the topic carries. Given, the topic is created or
            must be the same; without `sample_rate_hz` it must exist.
        max_backlog: unread chunks that a partition may hold (0: no bound); by default what the settings say.
        max_chunk_bytes: longer samples are split; by default what the settings say, as workers take no longer ones.
        when_full: then `block` for up to `timeout_s`, or `refuse` at once; either ends in BacklogFull.
        timeout_s: for how long a push is tried again while Redis is away, before BrokerUnavailable.
    Raises:
        ConfigError: the topic carries something else, or is not there.
        BrokerUnavailable: no Redis.

    After BrokerUnavailable or BacklogFull (or a push that was cancelled), push the same samples again: they keep
    their numbers, and what had been stored is dropped as a duplicate. Other samples never pass for them.

    >>> producer = Producer("calls", url=url, sample_rate_hz=8000)
    >>> first = producer.push("call-1", np.zeros(800, np.int16))
    >>> producer.push("call-1", np.zeros(800, np.float32), end=True) - first
    1
    >>> producer.close()
    """

    def _connect(self) -> None:
        self._client = connect(self._url, self._reply_timeout_s)
        self._appender = Appender(self._client, self.topic, self.partitions, self._max_backlog)

    def push(self, stream: str, samples: Array, *, end: bool = False) -> int:
        """Append samples (`[N]` or `[N, channels]`, int16 or float32 in -1..1) to a stream.

        Returns the seq of the (last) chunk. Raises ChunkRejected for samples that no worker would take: nothing
        was sent. Raises BrokerUnavailable or BacklogFull: push the same again.
        """
        return self.push_many([(stream, samples, end)])[0]

    def end(self, stream: str) -> int:
        """End a stream without more samples: what it still holds is decided and published."""
        return self.push(stream, _silence(self.spec), end=True)

    def push_many(self, items: Sequence[Item]) -> list[int]:
        """Push to many streams (each at most once) in one round trip. Returns the last seq of each."""
        since_s = time.monotonic()
        while new := self._outbox.new(stream for stream, _, _ in items):
            try:
                self._outbox.begin(new, self._server_time_us())
            except BrokerUnavailable:
                if self._late(since_s):
                    raise
                time.sleep(_WAIT_S)
        packed = self._pack(items)
        chunks = [chunk for part in packed for chunk in part]
        self._outbox.sending(chunks)
        while chunks:
            try:
                self._appender.append(chunks)
            except (BrokerUnavailable, BacklogFull) as error:
                chunks = self._after(error, chunks, since_s)
                time.sleep(_WAIT_S)
            else:
                self._outbox.stored(chunks)
                break
        return [part[-1].seq for part in packed]

    def close(self) -> None:
        """Close the connection. Streams that were not ended stay open, and may be gone on with."""
        self._client.close()

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _server_time_us(self) -> int:
        # A stream's first seq is the server's clock: above all seqs of an earlier life of the same name, on
        # whichever machine that was, so that a restart is never taken for a resend.
        with translate():
            seconds, micros = self._client.time()
        return int(seconds) * 1_000_000 + int(micros)


class AsyncProducer(_Base):
    """`Producer` for asyncio: the same arguments and rules, `await` before each call.

    Creating it talks to Redis once, blocking. One task at a time may push to a stream.

    >>> async def talk():
    ...     async with AsyncProducer("calls", url=url, sample_rate_hz=8000) as producer:
    ...         await producer.push("call-2", np.zeros(800, np.int16), end=True)
    >>> asyncio.run(talk())
    """

    def _connect(self) -> None:
        self._client = connect_async(self._url, self._reply_timeout_s)
        self._appender = AsyncAppender(self._client, self.topic, self.partitions, self._max_backlog)

    async def push(self, stream: str, samples: Array, *, end: bool = False) -> int:
        """As `Producer.push`."""
        return (await self.push_many([(stream, samples, end)]))[0]

    async def end(self, stream: str) -> int:
        """As `Producer.end`."""
        return await self.push(stream, _silence(self.spec), end=True)

    async def push_many(self, items: Sequence[Item]) -> list[int]:
        """As `Producer.push_many`."""
        since_s = time.monotonic()
        while new := self._outbox.new(stream for stream, _, _ in items):
            try:
                self._outbox.begin(new, await self._server_time_us())
            except BrokerUnavailable:
                if self._late(since_s):
                    raise
                await asyncio.sleep(_WAIT_S)
        packed = self._pack(items)
        chunks = [chunk for part in packed for chunk in part]
        self._outbox.sending(chunks)
        while chunks:
            try:
                await self._appender.append(chunks)
            except (BrokerUnavailable, BacklogFull) as error:
                chunks = self._after(error, chunks, since_s)
                await asyncio.sleep(_WAIT_S)
            else:
                self._outbox.stored(chunks)
                break
        return [part[-1].seq for part in packed]

    async def close(self) -> None:
        """As `Producer.close`."""
        await self._client.aclose()

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _server_time_us(self) -> int:
        with translate():
            seconds, micros = await self._client.time()
        return int(seconds) * 1_000_000 + int(micros)


def _silence(spec: InputSpec) -> Array:
    return np.empty((0, spec.channels), spec.sample_type)
