"""Two producers of one stream, numbers out of order, restarts without a question: nobody is left untold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import redis

from pipeline.broker.appender import Appender, Pushed
from pipeline.broker.keys import log_key, partition_of, stand_key
from pipeline.bundle import Bundle
from pipeline.consumer import Consumer, Result
from pipeline.errors import Fenced
from pipeline.worker import Worker
from tests import zoo
from tests.harness import assert_exact, collect, lively, spoken, whole, worker

from .producers import KINDS, Make, X, Y, effective, making, stored

SENSOR = {"sample_rate_hz": 50, "channels": 6, "sample_type": "float32"}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def make(request: pytest.FixtureRequest, url: str) -> Iterator[Make]:
    with making(request.param, url) as make:
        yield make


@pytest.fixture
def bundle() -> Bundle:
    return zoo.bundle("sensor")


def signal(bundle: Bundle, samples: int, seed: int = 0) -> np.ndarray:
    return zoo.signal(bundle.manifest.input, samples, seed)


@contextmanager
def listening(url: str, bundle: Bundle) -> Iterator[tuple[Worker, Consumer]]:
    """A worker, and a consumer from the beginning. The topic is there."""
    with Consumer("audio", "digits", url=url, start="beginning") as consumer, worker(url, bundle) as running:
        yield running, consumer


def notes(results: list[Result]) -> list[dict[str, object]]:
    return [note for result in results for note in result.notes]


def test_the_later_of_two_has_the_stream_and_both_are_told(make: Make, url: str, bundle: Bundle) -> None:
    """Never a mixture: what the first pushed up to then, a gap, and what the second pushed."""
    one, two = make(**SENSOR), make(**SENSOR)
    mine, yours = signal(bundle, 100, 1), signal(bundle, 100, 2)
    with listening(url, bundle) as (_, consumer):
        last = one.push("s", mine[:40])
        first = two.push("s", yours[:50])
        for _ in range(2):  # not only once: or a loop that tries again would take it back, and so would the other
            with pytest.raises(Fenced, match=r"another producer has claimed 's'.*resume"):
                one.push("s", mine[40:])
        two.push("s", yours[50:], end=True)
        results = collect(consumer, ["s"])["s"]
    assert notes(results) == [{"kind": "gap", "expected_seq": last + 1, "got_seq": first}]
    cut = next(i for i, result in enumerate(results) if result.seq == first)
    assert spoken(results[cut:]) == whole(bundle, yours)
    assert all(result.seq <= last for result in results[:cut])
    assert one.counts == {"pushed": 1, "fenced": 1}
    assert two.counts == {"pushed": 2}


def test_to_take_it_back_one_asks_where_it_stands(make: Make, url: str, bundle: Bundle) -> None:
    """Two that push the same signal, and hand it over to and fro, yield what the signal yields."""
    one, two, x = make(**SENSOR), make(**SENSOR), signal(bundle, 300)
    with listening(url, bundle) as (_, consumer):
        one.push("s", x[:10])
        for turn in range(10):
            now, other = (two, one) if turn % 2 == 0 else (one, two)
            at = now.resume("s").samples
            now.push("s", x[at : at + 17 + turn])
            with pytest.raises(Fenced):
                other.push("s", x[at : at + 100])
        two.push("s", x[two.resume("s").samples :], end=True)
        found = collect(consumer, ["s"])
    assert notes(found["s"]) == []
    assert_exact(bundle, {"s": x}, found)


def test_neighbours_of_a_stream_that_was_taken_are_stored(make: Make, redis_client: redis.Redis) -> None:
    one, names = make(), ["a", "b", "c", "d"]
    one.push_many([(name, X, False) for name in names])
    make().push("b", Y)
    with pytest.raises(Fenced, match=r"1 of 4 chunks are not stored.*'b'"):
        one.push_many([(name, Y, False) for name in names])
    assert {name: len(stored(redis_client, name)) for name in names} == dict.fromkeys(names, 2)
    with pytest.raises(Fenced, match="nothing is sent"):
        one.push_many([(name, Y, False) for name in names])
    one.push_many([(name, Y, True) for name in names if name != "b"])
    assert {name: len(effective(stored(redis_client, name))) for name in "acd"} == dict.fromkeys("acd", 3)


def test_a_name_that_ended_is_anybodys(make: Make, redis_client: redis.Redis) -> None:
    one, two = make(), make()
    for producer in (one, two, one):
        producer.push("s", X)
        producer.push("s", Y, end=True)
    seqs = [seq for seq, _, _ in stored(redis_client, "s")]
    assert seqs == sorted(set(seqs))
    assert len(seqs) == 6


def test_a_restart_without_a_question_is_a_gap_that_is_told(make: Make, url: str, bundle: Bundle) -> None:
    x = signal(bundle, 200)
    before = make(**SENSOR)
    with listening(url, bundle) as (_, consumer):
        last = before.push("s", x[:100])
        first = make(**SENSOR).push("s", x[100:], end=True)
        results = collect(consumer, ["s"])["s"]
    assert notes(results) == [{"kind": "gap", "expected_seq": last + 1, "got_seq": first}]
    assert spoken([result for result in results if result.seq >= first]) == whole(bundle, x[100:])


def test_numbers_that_come_again_are_dropped_and_those_that_lack_are_told(url: str, bundle: Bundle) -> None:
    """A producer that numbers by itself, in any language, without a claim."""
    x = signal(bundle, 100)
    parts = [x[at : at + 10] for at in range(0, 100, 10)]
    with making(KINDS["blocking"], url) as make:
        make(**SENSOR)
    with redis.Redis.from_url(url) as client, listening(url, bundle) as (running, consumer):

        def raw(stream: str, *seqs: int) -> None:
            log = log_key("audio", partition_of(stream, 4))
            for seq in seqs:
                end = {"end": "1"} if seq == 9 else {}
                client.xadd(log, {"stream": stream, "seq": seq, "data": parts[seq].tobytes(), **end})

        raw("repeats", 0, 1, 1, 0, 2, 1, *range(1, 10), 9, 4)
        raw("lacks", 0, 1, 5, 3, 4, 6, 7, 8, 9)
        found = collect(consumer, ["repeats", "lacks"])
    assert notes(found["repeats"]) == []
    assert spoken(found["repeats"]) == whole(bundle, x)
    assert notes(found["lacks"]) == [{"kind": "gap", "expected_seq": 2, "got_seq": 5}]
    assert spoken([result for result in found["lacks"] if result.seq >= 5]) == whole(bundle, x[50:])
    assert running.counts["duplicates"] == 5 + 2 + 2


def test_a_stream_that_was_forgotten_goes_on_where_it_stood(make: Make, url: str, bundle: Bundle) -> None:
    """Memory for two streams, and eight that take turns."""
    signals = lively(bundle, 8)
    producer = make(**SENSOR, max_streams=2)
    with listening(url, bundle) as (_, consumer):
        for at in range(0, max(map(len, signals.values())), 9):
            for name, x in signals.items():
                if at < len(x):
                    producer.push(name, x[at : at + 9], end=at + 9 >= len(x))
        found = collect(consumer, list(signals))
    assert not [note for results in found.values() for note in notes(results)]
    assert_exact(bundle, signals, found)


def test_a_new_life_lies_above_the_former_though_the_clock_went_back(make: Make, redis_client: redis.Redis) -> None:
    """As a worker drops what lies below: a life that began there would be dropped whole, and nobody told."""
    key = stand_key("audio", partition_of("s", 4), "s")
    ahead = (redis_client.time()[0] + 3600) * 1_000_000
    for status in ("live", "ended"):
        redis_client.set(key, f"{ahead} 0 {status} somebody/0")
        assert make().push("s", X) == ahead


def test_chunks_without_a_claim_are_not_asked_for_one(redis_client: redis.Redis) -> None:
    appender = Appender(redis_client, "audio", 4)
    for seq in (2**62, 3, 2**53):
        appender.append([Pushed("s", seq, b"")])
    assert [seq for seq, _, _ in stored(redis_client, "s")] == [2**62, 3, 2**53]
    assert redis_client.keys("*/s") == []
