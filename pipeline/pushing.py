"""What blocking and asyncio producers do alike: settings, numbers, retries. Everything but the waiting itself."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pydantic

from pipeline.arguments import seconds, whole
from pipeline.broker import topic as topics
from pipeline.broker.appender import Append, AppendFailed, AppendFenced, AppendFull, Pushed
from pipeline.broker.connection import TIMEOUT_S, check_server, connect
from pipeline.broker.exchange import Steps
from pipeline.broker.keys import partition_of
from pipeline.broker.stand import Begin, Begun, Resume, Terms
from pipeline.component import Array
from pipeline.errors import BacklogFull, BrokerUnavailable, ConfigError, StatebeltError
from pipeline.manifest import InputSpec
from pipeline.outbox import MAX_STREAMS, Cutter, Item, Outbox
from pipeline.settings import load_settings
from pipeline.waiting import CLOSED, Waiting

WhenFull = Literal["block", "refuse", "drop_oldest"]
MAX_WAITING = 1024
"""Chunks that wait in a producer that drops its oldest, by default: 100 s of one stream in chunks of 100 ms."""

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
        spec_of(wanted)  # before it is written for all to see
        return topics.create(client, wanted, any_partitions=any_partitions)
    finally:
        client.close()


def spec_of(topic: topics.Topic) -> InputSpec:
    """What the topic carries. Raises ConfigError: no bundle's input can be like that."""
    try:
        return InputSpec(
            sample_rate_hz=float(topic.sample_rate_hz), channels=topic.channels, sample_type=topic.sample_type
        )
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{item['loc'][0]} {item['input']}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"topic {topic.name!r}: {faults}") from None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a stream stands: all that was pushed to it, by whomever, and is stored.

    next_seq: the number of the next chunk; None when the next push begins a new life of the stream.
    samples: how many samples of its life are stored (since the last gap, as a worker starts afresh there). So
        `signal[samples:]` is what is missing. 0 for a stream that was never seen, or was idle too long.
    ended: its end is stored as well: nothing is missing.
    """

    stream: str
    next_seq: int | None
    samples: int
    ended: bool


class Pushing:
    """Settings, and what both forms do, but for the waiting."""

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
        when_full: WhenFull = "block",
        max_waiting: int = MAX_WAITING,
        timeout_s: float = 10.0,
        max_chunk_bytes: int | None = None,
        replicas: int | None = None,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        given = load_settings(url=url)
        max_backlog = given.max_backlog if max_backlog is None else max_backlog
        replicas = given.replicas if replicas is None else replicas
        max_chunk_bytes = given.max_chunk_bytes if max_chunk_bytes is None else max_chunk_bytes
        if when_full not in ("block", "refuse", "drop_oldest"):
            raise ConfigError(f"when_full is {when_full!r}; expected block, refuse or drop_oldest")
        seconds("timeout_s", timeout_s)
        whole("max_backlog", max_backlog, 0)
        whole("replicas", replicas, 0)
        whole("max_waiting", max_waiting, 1)
        whole("max_chunk_bytes", max_chunk_bytes, 1)
        whole("max_streams", max_streams, 1)
        self._url = given.redis_url
        self.counts: Counter[str] = Counter()
        self._waiting = Waiting(max_waiting, max_streams, self.counts) if when_full == "drop_oldest" else None
        wanted = given.partitions if partitions is None else partitions
        found = _topic(topic, self._url, sample_rate_hz, sample_type, channels, wanted, partitions is None)
        self.topic = topic
        self.partitions = found.partitions
        self.spec = spec_of(found)
        self._when_full = when_full
        self._timeout_s = timeout_s
        # A server that is silent, not gone, must not hold a push for longer than it was given.
        self._reply_timeout_s = min(TIMEOUT_S, max(1.0, timeout_s))
        self._terms = Terms(
            topic,
            found.partitions,
            max_backlog,
            replicas,
            replicas_timeout_ms=int(self._reply_timeout_s * 500),  # the answer must come before we stop listening
            idle_ms=given.idle_ms,
            tombstone_ms=given.tombstone_ms,
        )
        self._cutter = Cutter(self.spec, max_chunk_bytes)
        self._outbox = Outbox(max_streams, given.idle_ms)
        self._id, self._claims = secrets.token_hex(8), 0
        self._closed = False
        self._connect()

    def _connect(self) -> None:
        raise TypeError("use Producer or AsyncProducer")

    @property
    def resent(self) -> int:
        """Chunks that were sent again, because whether they were stored was unknown."""
        return self.counts["resent"]

    def _claim(self) -> str:
        return f"{self._id}/{self._claims}"

    def _check_open(self) -> None:
        """A closed client would connect again, and what is queued would wait for a sender that has ended."""
        if self._closed:
            raise ConfigError(CLOSED)

    def _late(self, since_s: float) -> bool:
        return time.monotonic() - since_s > self._timeout_s

    def _cut(self, items: Sequence[Item]) -> list[list[bytes]]:
        """Everything that can be wrong with a push, before anything is sent."""
        self._check_open()
        try:
            names = [stream for stream, _, _ in items]
        except (TypeError, ValueError):
            raise ConfigError(f"push_many was given {str(items)[:80]}; expected items (stream, samples, end)") from None
        if len(set(names)) < len(names):
            raise ConfigError(f"a stream stands twice in one push_many ({len(names)} items): join its samples")
        parts = [self._cutter.cut(stream, samples) for stream, samples, _ in items]
        most = self._terms.max_backlog
        if self._waiting is None and 0 < most < sum(map(len, parts)):
            together: Counter[int] = Counter()
            for name, part in zip(names, parts, strict=True):
                together[partition_of(name, self.partitions)] += len(part)
            partition, count = together.most_common(1)[0]
            if count > most:
                raise ConfigError(
                    f"a push of {count} chunks to partition {partition} never fits max_backlog {most}: "
                    "push less at a time, or raise it"
                )
        return parts

    def _push(self, items: Sequence[Item]) -> Steps[list[int]]:
        since_s, parts = time.monotonic(), self._cut(items)
        while new := self._outbox.new([stream for stream, _, _ in items]):
            try:
                self._outbox.begin((yield Begin(self._terms, new, self._claim())))
            except BrokerUnavailable:
                if self._late(since_s):
                    raise
                yield _WAIT_S
        numbered = [self._outbox.number(stream, part, end) for (stream, _, end), part in zip(items, parts, strict=True)]
        chunks = [chunk for each in numbered for chunk in each]
        self._outbox.sending(chunks)
        try:
            while chunks:
                try:
                    yield Append(self._terms, chunks)
                except (BrokerUnavailable, BacklogFull, AppendFenced) as error:
                    chunks = self._after(error, chunks, since_s)
                    yield _WAIT_S
                else:
                    self._stored(chunks)
                    break
        except BaseException:  # a push that was cancelled, too
            self._outbox.failed({chunk.stream for chunk in chunks})
            raise
        return [each[-1].seq for each in numbered]

    def _stored(self, chunks: Sequence[Pushed]) -> None:
        self._outbox.stored(chunks)
        self.counts["pushed"] += len(chunks)

    def _after(self, error: StatebeltError, chunks: list[Pushed], since_s: float) -> list[Pushed]:
        """What to send again after a failure; raises when it is time to tell the caller."""
        give_up = self._late(since_s)
        if isinstance(error, AppendFull):
            again = error.refused
            give_up |= self._when_full == "refuse"
        elif isinstance(error, AppendFenced):
            again, give_up = error.refused, True
        elif isinstance(error, AppendFailed):
            again = sorted({*error.unknown, *error.refused})
        else:
            again, give_up = list(range(len(chunks))), True
        kept = set(again)
        if len(kept) < len(chunks):
            self._stored([chunk for i, chunk in enumerate(chunks) if i not in kept])
        if isinstance(error, AppendFenced):
            self._outbox.fenced({chunks[i].stream for i in again})
            self.counts["fenced"] += len(again)
        if isinstance(error, AppendFailed):
            self._outbox.failed({chunks[i].stream for i in error.unknown})
        if isinstance(error, (AppendFull, AppendFailed)) and give_up:
            self._outbox.refused({chunks[i].stream for i in error.refused})
        if isinstance(error, AppendFull) and give_up:
            self.counts["refused"] += len(again)
        if give_up:
            raise error
        if not isinstance(error, AppendFull):
            self.counts["resent"] += len(again)
        return [chunks[i] for i in again]

    def _resume(self, stream: str) -> Steps[Standing]:
        self._check_open()
        since_s = time.monotonic()
        if self._waiting is not None and self._waiting.holds(stream):
            raise ConfigError(f"chunks of stream {stream!r} still wait to be sent: flush() before you resume it")
        self._claims += 1  # what this producer itself may have on its way is refused from now on
        resume = Resume(self._terms, stream, self._claim())
        while True:
            try:
                stand = yield resume
                break
            except BrokerUnavailable:
                if self._late(since_s):
                    raise
                yield _WAIT_S
        goes_on = Begun(stand.next_seq, resume.claim, True) if stand and not stand.ended else None
        if self._waiting is not None:
            self._waiting.resumed(stream, goes_on)
        else:
            self._outbox.resumed(stream, goes_on)
        samples = stand.size_bytes // self._cutter.sample_bytes if stand else 0
        return Standing(stream, goes_on and goes_on.next_seq, samples, bool(stand and stand.ended))

    def _queue(self, waiting: Waiting, items: Sequence[Item]) -> list[int]:
        parts = self._cut(items)
        return [waiting.add(stream, part, end) for (stream, _, end), part in zip(items, parts, strict=True)]


def silence(spec: InputSpec) -> Array:
    return np.empty((0, spec.channels), spec.sample_type)
