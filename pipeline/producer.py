"""Producers: samples into a topic. Blocking and asyncio, the same rules."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType

from pipeline.arguments import seconds
from pipeline.broker.connection import connect, connect_async
from pipeline.broker.exchange import drive, drive_async
from pipeline.component import Array
from pipeline.outbox import Item
from pipeline.pushing import Pushing, Standing, silence
from pipeline.sender import AsyncSender, Sender

__all__ = ["AsyncProducer", "Item", "Producer", "Standing"]


class Producer(Pushing):
    """Pushes samples of streams into a topic, in order, and resends safely.

    Args:
        topic: its name.
        url: Redis; by default what the settings say.
        sample_rate_hz, sample_type, channels, partitions: what the topic carries. Given, the topic is created or
            must be the same; without `sample_rate_hz` it must exist.
        max_backlog: unread chunks that a partition may hold (0: no bound); by default what the settings say.
        when_full: `block` for up to `timeout_s`, or `refuse` at once; either ends in BacklogFull. Or `drop_oldest`:
            a push never waits, neither for workers nor for Redis (see below).
        max_waiting: chunks that wait in this producer at most, those on their way included; for `drop_oldest`.
        timeout_s: for how long a push is tried again while Redis is away, before BrokerUnavailable.
        max_chunk_bytes: longer samples are split; by default what the settings say, as workers take no longer ones.
        replicas: how many must have a chunk before its push returns; by default what the settings' durability says.
        max_streams: how many streams it remembers. Those idle longest are forgotten, and looked up when they go on.
    Raises:
        ConfigError: the topic carries something else, or is not there.
        BrokerUnavailable: no Redis.

    After BrokerUnavailable or BacklogFull (or a push that was cancelled), push the same samples again: they keep
    their numbers, and what had been stored is dropped as a duplicate. Other samples never pass for them.

    A stream has one producer. Who pushes to it first in this program takes it over from any other: workers report the
    gap and start it afresh; the other's next push of it raises Fenced, stores nothing of it, and does so until it
    calls `resume` to take it back. A program that restarts and shall go on where it stopped calls `resume` first.

    With `drop_oldest`, `push` queues and returns -1, or the seq where it is known already. A thread sends. When more
    than `max_waiting` chunks wait, the oldest are dropped, counted, and reported by the worker as a gap; nothing that
    is in Redis is ever dropped. `flush` waits until all is stored, `close` for up to `timeout_s`.

    `counts`: chunks `pushed` (known to be stored), `resent`, `refused` (told by BacklogFull), `fenced` (told by
    Fenced), `dropped`; and `dropped_ends`, where an end could not be kept.

    >>> producer = Producer("calls", url=url, sample_rate_hz=8000)
    >>> first = producer.push("call-1", np.zeros(800, np.int16))
    >>> producer.push("call-1", np.zeros(800, np.float32), end=True) - first
    1
    >>> producer.close()
    """

    def _connect(self) -> None:
        self._client = connect(self._url, self._reply_timeout_s, busy=True)
        self._sender: Sender | None = None
        if self._waiting is not None:
            self._sender = Sender(self._client, self._waiting, self._terms, self._claim())

    def push(self, stream: str, samples: Array, *, end: bool = False) -> int:
        """Append samples (`[N]` or `[N, channels]`, int16 or float32 in -1..1) to a stream.

        Returns the seq of the (last) chunk. Raises ChunkRejected for samples that no worker would take: nothing
        was sent. Raises BrokerUnavailable or BacklogFull: push the same again. Raises Fenced: another producer has
        taken the stream.
        """
        return self.push_many([(stream, samples, end)])[0]

    def give(self, stream: str, values: Array) -> int:
        """Give a stream what its bundle's manifest calls `given` (a speaker's embedding, say): float32, all of them in
        the manifest's order, flattened. It holds from here on, until the stream ends or expires (`idle_ms`); give it
        before the first samples. A gap does not end it: who takes a living stream over from another one gives anew.

        Returns the seq of its chunk. Raises as `push`. Of a wrong length, it becomes a dead letter: `bad_given`.
        """
        return self.push_many([(stream, self._cutter.given(stream, values), False)])[0]

    def end(self, stream: str) -> int:
        """End a stream without more samples: what it still holds is decided and published."""
        return self.push(stream, silence(self.spec), end=True)

    def push_many(self, items: Sequence[Item]) -> list[int]:
        """Push to many streams (each at most once) in one round trip. Returns the last seq of each.

        Where some raise Fenced, the others are stored.
        """
        if self._waiting is None or self._sender is None:
            return drive(self._client, self._push(items))
        seqs = self._queue(self._waiting, items)
        self._sender.nudge()
        return seqs

    def resume(self, stream: str) -> Standing:
        """Where a stream stands, so that it can be gone on with; from now on it is this producer's.

        What is answered is exact and stays so: nobody else can push to the stream any more, nor can what a producer
        that died (or this one) still had on its way. It counts what is stored in the log, once each, whether workers
        have read it or not, of whichever group, and whether it was trimmed since. The next push goes on with
        `next_seq`: no gap, no duplicate, and the results are those of the whole signal, byte for byte.

        Asked within the idle time of the settings (`idle_ms`) of the last chunk, or `tombstone_ms` of an end: later
        the stream's state is gone as well, and it begins anew. Streams that are pushed with a plain XADD, without
        `sb_append`, are not known here.

        Raises BrokerUnavailable after `timeout_s`; ChunkRejected for a name that is none.

        >>> signal = np.zeros(2400, np.int16)
        >>> with Producer("calls", url=url) as before:
        ...     _ = before.push("call-3", signal[:800])
        >>> with Producer("calls", url=url) as after:
        ...     stand = after.resume("call-3")
        ...     if not stand.ended:
        ...         _ = after.push("call-3", signal[stand.samples :], end=True)
        ...     (stand.samples, after.resume("call-3").samples, after.resume("call-3").ended)
        (800, 2400, True)
        """
        return drive(self._client, self._resume(stream))

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until what was pushed is stored. Without `drop_oldest` it is, once `push` has returned.

        Raises BacklogFull or BrokerUnavailable when something still waits after `timeout_s` (by default the
        producer's): it goes on waiting.
        """
        self._check_open()
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        seconds("timeout_s", timeout_s)
        if self._sender is not None:
            self._sender.flush(timeout_s)

    def close(self) -> None:
        """Close the connection. Streams that were not ended stay open, and may be gone on with.

        With `drop_oldest`: what waits is sent first, within `timeout_s`; what then still waits is dropped, counted.

        From then on everything but `counts` and another `close` raises ConfigError.
        """
        self._closed = True
        if self._sender is not None:
            self._sender.close(self._timeout_s)
        self._client.close()

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncProducer(Pushing):
    """`Producer` for asyncio: the same arguments and rules, `await` before each call.

    Creating it talks to Redis once, blocking. One task at a time may push to a stream. With `drop_oldest` a task of
    the running loop sends.

    >>> async def talk():
    ...     async with AsyncProducer("calls", url=url, sample_rate_hz=8000) as producer:
    ...         await producer.push("call-2", np.zeros(800, np.int16), end=True)
    >>> asyncio.run(talk())
    """

    def _connect(self) -> None:
        self._client = connect_async(self._url, self._reply_timeout_s)
        self._sender: AsyncSender | None = None
        if self._waiting is not None:
            self._sender = AsyncSender(self._client, self._waiting, self._terms, self._claim())

    async def push(self, stream: str, samples: Array, *, end: bool = False) -> int:
        """As `Producer.push`."""
        return (await self.push_many([(stream, samples, end)]))[0]

    async def give(self, stream: str, values: Array) -> int:
        """As `Producer.give`."""
        return (await self.push_many([(stream, self._cutter.given(stream, values), False)]))[0]

    async def end(self, stream: str) -> int:
        """As `Producer.end`."""
        return await self.push(stream, silence(self.spec), end=True)

    async def push_many(self, items: Sequence[Item]) -> list[int]:
        """As `Producer.push_many`."""
        if self._waiting is None or self._sender is None:
            return await drive_async(self._client, self._push(items))
        seqs = self._queue(self._waiting, items)
        self._sender.nudge()
        await asyncio.sleep(0)  # a caller that does nothing but push must not keep the sender from its turn
        return seqs

    async def resume(self, stream: str) -> Standing:
        """As `Producer.resume`."""
        return await drive_async(self._client, self._resume(stream))

    async def flush(self, timeout_s: float | None = None) -> None:
        """As `Producer.flush`."""
        self._check_open()
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        seconds("timeout_s", timeout_s)
        if self._sender is not None:
            await self._sender.flush(timeout_s)

    async def close(self) -> None:
        """As `Producer.close`."""
        self._closed = True
        if self._sender is not None:
            await self._sender.close(self._timeout_s)
        await self._client.aclose()

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
