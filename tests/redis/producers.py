"""Blocking and asyncio producers under one hand, so that every test of theirs is a test of both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import redis

from pipeline.broker.keys import log_key, partition_of
from pipeline.producer import AsyncProducer, Producer, Standing

X, Y = np.arange(100, dtype=np.int16), np.arange(100, 200, dtype=np.int16)


class Awaited:
    """An AsyncProducer, used as if it were blocking. Its sender gets its turns while a call is awaited."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self.inner = AsyncProducer(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def push(self, *args: Any, **options: Any) -> int:
        return self._loop.run_until_complete(self.inner.push(*args, **options))

    def push_many(self, items: Sequence[Any]) -> list[int]:
        return self._loop.run_until_complete(self.inner.push_many(items))

    def give(self, stream: str, values: np.ndarray) -> int:
        return self._loop.run_until_complete(self.inner.give(stream, values))

    def end(self, stream: str) -> int:
        return self._loop.run_until_complete(self.inner.end(stream))

    def resume(self, stream: str) -> Standing:
        return self._loop.run_until_complete(self.inner.resume(stream))

    def flush(self, timeout_s: float | None = None) -> None:
        self._loop.run_until_complete(self.inner.flush(timeout_s))

    def close(self) -> None:
        self._loop.run_until_complete(self.inner.close())
        self._loop.close()


Make = Callable[..., Any]
KINDS = {"blocking": Producer, "asyncio": Awaited}


@contextmanager
def making(kind: Callable[..., Any], url: str) -> Iterator[Make]:
    """Makes producers of a kind, closed at the end (unless the test has closed them)."""
    made: list[Any] = []

    def producer(topic: str = "audio", **options: Any) -> Any:
        options = {"url": url, "sample_rate_hz": 8000, "partitions": 4, **options}
        made.append(kind(topic, **options))
        return made[-1]

    yield producer
    for each in made:
        if not isinstance(each, Awaited) or not each._loop.is_closed():
            each.close()


Stored = list[tuple[int, bytes, bool]]


def stored(client: redis.Redis, stream: str, partitions: int = 4) -> Stored:
    """What the log holds of a stream: seq, data, end."""
    entries = client.xrange(log_key("audio", partition_of(stream, partitions)))
    return [(int(f[b"seq"]), f[b"data"], b"end" in f) for _, f in entries if f[b"stream"] == stream.encode()]


def effective(entries: Stored) -> list[bytes]:
    """What a worker takes of them: it drops what it has seen, and must see no gap."""
    taken: Stored = []
    for entry in entries:
        if not taken or entry[0] > taken[-1][0]:
            assert not taken or entry[0] == taken[-1][0] + 1, "a gap"
            taken.append(entry)
    return [data for _, data, _ in taken]
