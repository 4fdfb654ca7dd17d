"""Producers, blocking and asyncio alike, on a real server: what is stored, whatever got lost on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import log_key
from pipeline.consumer import Consumer
from pipeline.errors import BacklogFull, BrokerUnavailable, ChunkRejected, ConfigError
from pipeline.producer import AsyncProducer
from tests import zoo
from tests.harness import assert_exact, collect, spoken, whole, worker

from .producers import KINDS, Make, X, Y, effective, making, stored
from .proxy import Proxy


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def make(request: pytest.FixtureRequest, url: str) -> Iterator[Make]:
    with making(request.param, url) as make:
        yield make


def test_what_is_not_given_is_as_the_settings_say(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer splits where workers of the same settings would reject, and stops where they say it is full."""
    for name, value in (("MAX_CHUNK_BYTES", "100"), ("MAX_BACKLOG", "7"), ("PARTITIONS", "1")):
        monkeypatch.setenv(f"STATEBELT_{name}", value)
    producer = make(when_full="refuse", partitions=None)
    first = producer.push("s", X[:1])
    assert producer.push("s", X) - first == 2  # 200 bytes: two chunks
    producer.push("s", X)
    with pytest.raises(BacklogFull):
        producer.push_many([("s", X, False), ("t", X[:1], False)])


def test_numbers_rise_by_one_from_the_servers_clock(make: Make, redis_client: redis.Redis) -> None:
    producer = make()
    before = redis_client.time()
    seqs = [producer.push("s", X), producer.push("s", Y), producer.end("s")]
    assert seqs == list(range(seqs[0], seqs[0] + 3))
    assert seqs[0] > before[0] * 1_000_000 + before[1]
    assert stored(redis_client, "s") == [
        (seqs[0], X.tobytes(), False), (seqs[1], Y.tobytes(), False), (seqs[2], b"", True)
    ]  # fmt: skip


def test_two_lives_of_a_name_right_after_each_other(make: Make, redis_client: redis.Redis) -> None:
    producer = make()
    lives = [(producer.push("s", X), producer.push("s", Y, end=True)) for _ in range(5)]
    flat = [seq for life in lives for seq in life]
    assert flat == sorted(set(flat))
    assert [end for _, _, end in stored(redis_client, "s")] == [False, True] * 5


def test_many_streams_at_once(make: Make, redis_client: redis.Redis) -> None:
    producer, names = make(), [f"s-{i}" for i in range(500)]
    for end in (False, True):
        producer.push_many([(name, X + i, end) for i, name in enumerate(names)])
    for i, name in enumerate(names):
        assert [(data, end) for _, data, end in stored(redis_client, name)] == [
            ((X + i).tobytes(), False), ((X + i).tobytes(), True)
        ]  # fmt: skip
    assert producer.push_many([]) == []


def test_one_bad_item_and_nothing_is_sent(make: Make, redis_client: redis.Redis) -> None:
    producer = make()
    with pytest.raises(ChunkRejected, match="stream 'b'"):
        producer.push_many([("a", X, False), ("b", np.zeros(3), False)])
    with pytest.raises(ConfigError, match="twice"):
        producer.push_many([("a", X, False), ("a", Y, False)])
    assert stored(redis_client, "a") == []
    first = producer.push("a", Y)
    assert producer.push("a", X) == first + 1


def test_a_lost_reply_is_sent_again_under_its_number(make: Make, proxy: Proxy, redis_client: redis.Redis) -> None:
    producer = make(url=proxy.url)
    producer.push("s", X)
    proxy.lose_reply()
    producer.push("s", Y)
    assert proxy.lost.is_set()
    assert producer.resent == 1
    assert producer.counts == {"pushed": 2, "resent": 1}
    producer.push("s", X)
    found = stored(redis_client, "s")
    assert len(found) == 4
    assert effective(found) == [X.tobytes(), Y.tobytes(), X.tobytes()]


@pytest.mark.parametrize("again", ["the same", "the same and its end", "others"])
def test_after_a_failed_push(make: Make, proxy: Proxy, redis_client: redis.Redis, again: str) -> None:
    """The reply is lost and there is no time to try again: the chunk is stored, and the producer cannot know."""
    producer = make(url=proxy.url, timeout_s=0)
    producer.push("s", Y)
    proxy.lose_reply()
    with pytest.raises(BrokerUnavailable):
        producer.push("s", X)
    assert proxy.lost.is_set()
    producer.push("s", Y if again == "others" else X, end=again == "the same and its end")
    found = stored(redis_client, "s")
    expected = {"the same": [], "the same and its end": [b""], "others": [Y.tobytes()]}[again]
    assert effective(found) == [Y.tobytes(), X.tobytes(), *expected]
    assert found[-1][2] == (again == "the same and its end")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "own", fsync="no") as server:
        yield server


def test_server_away_then_back(make: Make, own: EmbeddedServer) -> None:
    producer = make(url=own.url, timeout_s=0.3)
    first = producer.push("s", X)
    own.close()
    since = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        producer.push("s", Y)
    assert 0.3 <= time.monotonic() - since < 5
    own.start()
    assert producer.push("s", Y) == first + 1


def test_a_silent_server_holds_a_push_no_longer_than_it_was_given(make: Make, own: EmbeddedServer) -> None:
    producer = make(url=own.url, timeout_s=0.2)
    first = producer.push("s", X)
    assert own.pid is not None
    os.kill(own.pid, signal.SIGSTOP)
    try:
        since = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            producer.push("s", Y)
        assert time.monotonic() - since < 5
    finally:
        os.kill(own.pid, signal.SIGCONT)
    assert producer.push("s", Y) == first + 1


def test_a_cancelled_push_keeps_its_number_from_others(own: EmbeddedServer) -> None:
    async def main() -> list[int]:
        assert own.pid is not None
        async with AsyncProducer("audio", url=own.url, sample_rate_hz=8000) as producer:
            seqs = [await producer.push("s", X)]
            os.kill(own.pid, signal.SIGSTOP)
            try:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(producer.push("s", Y), 0.2)
            finally:
                os.kill(own.pid, signal.SIGCONT)
            seqs.append(await producer.push("s", X))
        return seqs

    first, second = asyncio.run(main())
    assert second == first + 2


def test_refuse_when_full(make: Make, redis_client: redis.Redis) -> None:
    producer = make(max_backlog=2, when_full="refuse", partitions=1)
    seqs = [producer.push("s", X), producer.push("s", Y)]
    with pytest.raises(BacklogFull, match="2 unread chunks"):
        producer.push("s", X)
    assert len(stored(redis_client, "s", 1)) == 2
    assert producer.counts == {"pushed": 2, "refused": 1}
    redis_client.delete(log_key("audio", 0))
    assert producer.push("s", X) == seqs[-1] + 1
    with pytest.raises(ConfigError, match="3 chunks to partition 0 never fits max_backlog 2"):
        producer.push_many([(name, X, False) for name in "abc"])


def test_block_when_full_until_a_worker_comes(make: Make, url: str) -> None:
    bundle = zoo.bundle("digits")
    producer = make(max_backlog=2, timeout_s=0.2, partitions=1)
    producer.push_many([("s", X, False), ("t", Y, True)])
    with pytest.raises(BacklogFull):
        producer.push("s", Y, end=True)
    patient = make(max_backlog=2, timeout_s=30, partitions=1)
    with Consumer("audio", "digits", url=url, start="beginning") as consumer, worker(url, bundle):
        patient.push("u", X, end=True)
        producer.push("s", Y, end=True)
        found = collect(consumer, ["s", "t", "u"])
    assert_exact(bundle, {"s": np.concatenate([X, Y]), "t": Y, "u": X}, found)


@pytest.mark.parametrize("server", ["embedded"], indirect=True)  # what is tried is not the server
def test_ten_megabytes_at_once_yield_what_the_whole_yields(make: Make, url: str, redis_client: redis.Redis) -> None:
    bundle = zoo.bundle("sensor")
    samples = zoo.signal(bundle.manifest.input, 10_000_000 // 24)
    producer = make(sample_rate_hz=50, channels=6, sample_type="float32")
    producer.push("big", samples, end=True)
    parts = stored(redis_client, "big")
    assert len(parts) == 10
    assert max(len(data) for _, data, _ in parts) <= 2**20
    assert b"".join(effective(parts)) == samples.tobytes()
    with worker(url, bundle), Consumer("audio", "digits", url=url, start="beginning") as consumer:
        assert spoken(collect(consumer, ["big"])["big"]) == whole(bundle, samples)


def test_a_topic_that_is_another_or_not_there(make: Make) -> None:
    with pytest.raises(ConfigError, match="no topic 'audio' yet; say sample_rate_hz"):
        make(sample_rate_hz=None)
    make()
    for options, words in (
        ({"sample_rate_hz": 16_000}, "sample_rate_hz is 8000.0 there and 16000 here"),
        ({"sample_type": "float32"}, "sample_type is 'int16' there and 'float32' here"),
        ({"channels": 2}, "channels is 1 there and 2 here"),
        ({"partitions": 5}, "partitions is 4 there and 5 here"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(**options)
    found = make(sample_rate_hz=None)
    assert (found.partitions, found.spec.sample_rate_hz, found.spec.sample_type) == (4, 8000, "int16")


@pytest.mark.parametrize("server", ["embedded"], indirect=True)  # what is tried is not the server
@pytest.mark.parametrize(
    "options",
    [
        {"sample_rate_hz": 2e6}, {"sample_rate_hz": 0}, {"sample_rate_hz": float("nan")}, {"channels": 0},
        {"channels": 70_000}, {"sample_type": "int8"}, {"partitions": 0}, {"when_full": "drop"}, {"max_backlog": -1},
        {"replicas": -1}, {"max_streams": 0}, {"when_full": "drop_oldest", "max_waiting": 1}, {"max_chunk_bytes": 0},
        {"sample_rate_hz": "8000"}, {"sample_rate_hz": True}, {"channels": "a"}, {"channels": 1.5}, {"partitions": "4"},
        {"partitions": 2.5}, {"sample_type": np.int16}, {"max_backlog": "a"}, {"max_backlog": 1.5}, {"replicas": "x"},
        {"max_streams": None}, {"timeout_s": "a"}, {"timeout_s": None}, {"max_chunk_bytes": "a"},
        {"when_full": "drop_oldest", "max_waiting": "a"}, {"topic": 3},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_topic_can_be_is_refused_and_not_written(
    make: Make, redis_client: redis.Redis, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as raised:
        make(**options)
    assert "expected" in str(raised.value) or "should" in str(raised.value)
    assert redis_client.keys("*") == []


def test_numbers_as_arrays_hold_them_are_numbers(make: Make) -> None:
    found = make(
        sample_rate_hz=np.float32(8000), channels=np.int64(1), max_backlog=np.int64(7), timeout_s=np.float64(1)
    )
    assert found.spec.sample_rate_hz == 8000
    assert make(sample_rate_hz=Fraction(8000)).spec == found.spec


@pytest.mark.parametrize("items", [["a"], [("a", X)], 3])
def test_items_that_are_none(make: Make, items: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected .*\(stream, samples, end\)"):
        make().push_many(items)


def test_floats_are_what_run_says_of_the_same_floats(make: Make, url: str) -> None:
    """Overshoots are clipped in the same way; each chunk is converted by itself there, the whole at once here."""
    bundle = zoo.bundle("digits")
    rng = np.random.default_rng(2)
    x = (zoo.signal(bundle.manifest.input, 8000)[:, 0] / 20_000 + rng.normal(0, 1e-3, 8000)).astype(np.float32)
    assert np.abs(x).max() > 1.2
    producer = make()
    with Consumer("audio", "digits", url=url, start="beginning") as consumer, worker(url, bundle):
        for at in range(0, 8000, 777):
            producer.push("s", x[at : at + 777], end=at + 777 >= 8000)
        found = collect(consumer, ["s"])
    assert_exact(bundle, {"s": x}, found)


def test_a_float_on_the_scale_of_int16_is_refused(make: Make, redis_client: redis.Redis) -> None:
    producer = make()
    with pytest.raises(ChunkRejected, match=r"stream 's': float32 samples reach 99; .* use x.astype\(\"int16\"\)"):
        producer.push("s", X.astype(np.float32))
    assert stored(redis_client, "s") == []


def test_no_server(make: Make, tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable):
        make(url=f"unix://{tmp_path}/none.sock")
