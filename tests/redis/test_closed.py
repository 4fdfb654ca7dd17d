"""Producers and consumers that are closed: they refuse, and say so; nothing is lost without a word, nothing hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis

from pipeline.broker import topic as topics
from pipeline.consumer import AsyncConsumer, Consumer
from pipeline.errors import ConfigError

from .producers import KINDS, Awaited, Make, X, Y, making, stored
from .test_consumer import Awaited as AwaitedConsumer
from .test_consumer import publish

CALLS: dict[str, Callable[[Any], object]] = {
    "push": lambda producer: producer.push("s", X),
    "push to a new stream": lambda producer: producer.push("new", X),
    "push_many": lambda producer: producer.push_many([("s", X, False)]),
    "push_many of nothing": lambda producer: producer.push_many([]),
    "give": lambda producer: producer.give("s", np.zeros(3, np.float32)),
    "end": lambda producer: producer.end("s"),
    "resume": lambda producer: producer.resume("s"),
    "flush": lambda producer: producer.flush(),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def make(request: pytest.FixtureRequest, url: str) -> Iterator[Make]:
    with making(request.param, url) as make:
        yield make


def close(producer: Any) -> None:
    """Without the loop of an asyncio producer, which is to be asked once more."""
    if isinstance(producer, Awaited):
        producer._loop.run_until_complete(producer.inner.close())
    else:
        producer.close()


@pytest.mark.parametrize("when_full", ["block", "drop_oldest"])
def test_a_flush_for_no_time_is_told(make: Make, when_full: str) -> None:
    with pytest.raises(ConfigError, match="timeout_s is 'soon'; expected seconds, a number"):
        make(when_full=when_full).flush("soon")


@pytest.mark.parametrize("when_full", ["block", "refuse", "drop_oldest"])
def test_a_closed_producer_refuses(make: Make, redis_client: redis.Redis, when_full: str) -> None:
    producer = make(when_full=when_full)
    producer.push("s", X)
    close(producer)
    began_s = time.monotonic()
    for call in CALLS.values():
        with pytest.raises(ConfigError, match=r"this producer is closed.*make another"):
            call(producer)
    assert time.monotonic() - began_s < 2  # flush waited for what nobody was going to send
    assert producer.counts == {"pushed": 1}
    assert [data for _, data, _ in stored(redis_client, "s")] == [X.tobytes()]
    assert stored(redis_client, "new") == []


@pytest.mark.parametrize("when_full", ["block", "drop_oldest"])
def test_to_close_twice_is_to_close_once(make: Make, redis_client: redis.Redis, when_full: str) -> None:
    producer = make(when_full=when_full)
    producer.push("s", X)
    for _ in range(3):
        close(producer)
    assert producer.counts == {"pushed": 1}
    assert len(stored(redis_client, "s")) == 1


@pytest.mark.parametrize("_turn", range(5))
def test_who_pushes_while_another_thread_closes_is_told(url: str, _turn: int) -> None:
    """Every push is stored, counted as dropped, or refused: however the two meet."""
    with making(KINDS["blocking"], url) as make:
        producer, taken = make(when_full="drop_oldest", max_waiting=1000, max_backlog=0), 0
        refused = threading.Event()

        def push() -> None:
            nonlocal taken
            for taken in range(100_000):  # noqa: B007
                try:
                    producer.push("s", Y)
                except ConfigError:
                    refused.set()
                    return

        thread = threading.Thread(target=push)
        thread.start()
        time.sleep(0.05)
        producer.close()
        thread.join(10)
        assert refused.is_set()
        assert producer.counts["pushed"] + producer.counts["dropped"] == taken


def test_the_queue_itself_takes_nothing_once_it_was_given_up(url: str) -> None:
    """Whoever had asked whether the producer is open, just before it closed, comes too late here."""
    with making(KINDS["blocking"], url) as make:
        producer = make(when_full="drop_oldest")
        producer.close()
        with pytest.raises(ConfigError, match="this producer is closed"):
            producer._waiting.add("s", [b"12"], False)


READS: dict[str, Callable[[Any], object]] = {
    "open": lambda consumer: consumer.open(),
    "read": lambda consumer: consumer.read(0.1),
    "iterate": lambda consumer: next(iter(consumer)),
    "until_end": lambda consumer: next(iter(consumer.until_end("s"))),
}


@pytest.mark.parametrize("kind", [Consumer, AwaitedConsumer], ids=["blocking", "asyncio"])
@pytest.mark.parametrize("left", [False, True], ids=["fresh", "results left"])
def test_a_closed_consumer_refuses(url: str, redis_client: redis.Redis, kind: Any, left: bool) -> None:
    topics.create(redis_client, topics.Topic("audio", 8000.0, "int16", 1, 2))
    for seq in range(3):
        publish(redis_client, "s", seq)
    consumer = kind("audio", "digits", url=url, start="beginning")
    if left:
        next(iter(consumer))
    offsets = consumer.offsets
    inner = getattr(consumer, "inner", consumer)
    if isinstance(inner, AsyncConsumer):
        consumer._loop.run_until_complete(inner.close())
    else:
        inner.close()
    for read in READS.values():
        with pytest.raises(ConfigError, match=r"this consumer is closed.*make another"):
            read(consumer)
    assert consumer.offsets == offsets  # they may be saved afterwards
    consumer.close()
