"""What producers remember of streams: bounded, whatever was refused, lost or taken, and no sample of it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import log_key
from pipeline.errors import BacklogFull, BrokerUnavailable, Fenced
from pipeline.producer import AsyncProducer
from tests.harness import DEADLINE_S

from .producers import KINDS, Make, X, Y, effective, making, stored
from .proxy import Proxy

LONG = np.zeros(100_000, np.int16)


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def make(request: pytest.FixtureRequest, url: str) -> Iterator[Make]:
    with making(request.param, url) as make:
        yield make


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def held_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.usefixtures("traced")
def test_pushes_that_were_refused_and_given_up_leave_nothing_behind(make: Make) -> None:
    producer = make(max_backlog=1, when_full="refuse", partitions=1, max_streams=10)
    producer.push("s", X)
    before = held_bytes()
    for i in range(200):
        with pytest.raises(BacklogFull):
            producer.push(f"call-{i}", LONG, end=True)
    assert len(producer._outbox) == 10
    assert held_bytes() - before < 10 * LONG.nbytes  # of 40 MB


def test_what_was_refused_and_forgotten_keeps_its_number(make: Make, redis_client: redis.Redis) -> None:
    """Nothing of it is stored: the server knows the number."""
    producer = make(max_backlog=1, when_full="refuse", partitions=1, max_streams=2)
    first = producer.push("s", X)
    for stream in ("s", "t", "u", "v"):
        with pytest.raises(BacklogFull):
            producer.push(stream, Y)
    redis_client.delete(log_key("audio", 0))
    assert producer.push("s", Y) == first + 1


@pytest.mark.usefixtures("traced")
def test_pushes_that_may_be_stored_keep_their_numbers_and_none_of_their_samples(
    make: Make, proxy: Proxy, redis_client: redis.Redis
) -> None:
    producer = make(url=proxy.url, timeout_s=0, max_streams=2)
    names = [f"s-{i}" for i in range(20)]
    firsts = [producer.push(name, X) for name in names]
    before = held_bytes()
    for name in names:
        proxy.lose_reply(b"sb_append")
        with pytest.raises(BrokerUnavailable):
            producer.push(name, LONG)
    assert held_bytes() - before < 5 * LONG.nbytes
    producer.push_many([(f"t-{i}", X, False) for i in range(10)])
    assert [producer.push(name, LONG) for name in names] == [first + 1 for first in firsts]
    for name in names:
        assert effective(stored(redis_client, name)) == [X.tobytes(), LONG.tobytes()]


def test_a_push_that_is_refused_after_it_may_have_been_stored_keeps_its_number(
    make: Make, proxy: Proxy, redis_client: redis.Redis
) -> None:
    """It was stored, its reply was lost, and sent again it found the partition full of itself."""
    producer = make(url=proxy.url, when_full="refuse", max_backlog=2, partitions=1, max_streams=1)
    first = producer.push("s", X)
    proxy.lose_reply(b"sb_append")
    with pytest.raises(BacklogFull):
        producer.push("s", Y)
    for stream in ("t", "u"):
        with pytest.raises(BacklogFull):
            producer.push(stream, X)
    redis_client.delete(log_key("audio", 0))
    assert producer.push("s", Y) == first + 1  # forgotten, it would be first + 2: the samples twice


def test_streams_that_were_taken_are_forgotten_after_all_others(make: Make, redis_client: redis.Redis) -> None:
    for when_full in ("block", "drop_oldest"):
        one, two = make(max_streams=2, when_full=when_full), make()
        one.push("s", X)
        one.flush()
        two.push("s", Y)
        if when_full == "block":
            with pytest.raises(Fenced):
                one.push("s", X)
        else:
            one.push("s", X)
            one.flush()
        for i in range(10):
            one.push(f"t-{i}", X)
            one.flush()
        with pytest.raises(Fenced, match="'s'"):
            one.push("s", X)
        assert two.resume("s").samples == 100
        redis_client.flushall()


@pytest.mark.usefixtures("traced")
def test_a_cancelled_push_leaves_none_of_its_samples(tmp_path: Path) -> None:
    async def main(server: EmbeddedServer) -> None:
        assert server.pid is not None
        async with AsyncProducer("audio", url=server.url, sample_rate_hz=8000) as producer:
            await asyncio.gather(*[producer.push(f"s-{i}", X) for i in range(20)])
            before = held_bytes()
            os.kill(server.pid, signal.SIGSTOP)
            try:
                pushes = [asyncio.wait_for(producer.push(f"s-{i}", LONG), 0.2) for i in range(20)]
                failed = await asyncio.gather(*pushes, return_exceptions=True)
                assert [type(error) for error in failed] == [TimeoutError] * 20
            finally:
                os.kill(server.pid, signal.SIGCONT)
            del pushes, failed
            deadline = time.monotonic() + DEADLINE_S
            while held_bytes() - before > 5 * LONG.nbytes:  # asyncio sends what it holds before it closes a connection
                assert time.monotonic() < deadline
                await producer.push("t", X)

    with EmbeddedServer(tmp_path / "own", fsync="no") as server:
        asyncio.run(main(server))
