"""Producers that never wait: what they drop is counted here and told there, and Redis loses nothing of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import log_key, partition_of
from pipeline.consumer import Consumer
from pipeline.errors import BacklogFull, BrokerUnavailable, ChunkRejected, ConfigError, Fenced
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, lively, random_cut, spoken, whole, worker

from .producers import KINDS, Make, X, Y, effective, making, stored
from .proxy import Proxy

SENSOR = {"sample_rate_hz": 50, "channels": 6, "sample_type": "float32"}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def make(request: pytest.FixtureRequest, url: str) -> Iterator[Make]:
    with making(request.param, url) as make:
        yield lambda **options: make(**{"when_full": "drop_oldest", **options})


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "own", fsync="no") as server:
        yield server


def frozen(server: EmbeddedServer, still: bool) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP if still else signal.SIGCONT)


def test_with_room_for_all_nothing_differs_from_a_producer_that_waits(make: Make, url: str) -> None:
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 6)
    producer = make(**SENSOR)
    with worker(url, bundle), Consumer("audio", "digits", url=url, start="beginning") as consumer:
        for batch in cut_up(bundle, signals, random_cut):
            producer.push_many(batch)
        producer.flush()
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    assert set(producer.counts) == {"pushed"}


def test_without_workers_the_oldest_go_and_the_gap_is_told(make: Make, url: str, redis_client: redis.Redis) -> None:
    bundle = zoo.bundle("sensor")
    x = zoo.signal(bundle.manifest.input, 200)
    producer = make(**SENSOR, partitions=1, max_backlog=3, max_waiting=4)
    for at in (0, 10, 20):
        producer.push("s", x[at : at + 10])
    producer.flush()
    in_the_log = stored(redis_client, "s", 1)
    began_s = time.monotonic()
    for at in range(30, 200, 10):
        producer.push("s", x[at : at + 10], end=at == 190)
    assert time.monotonic() - began_s < 2
    with pytest.raises(BacklogFull, match=r"4 chunks still wait after 0.05 s .*partition 0 has 3 unread chunks"):
        producer.flush(0.05)
    assert stored(redis_client, "s", 1) == in_the_log  # what lies in the log is not ours to drop
    assert (producer.counts["pushed"], producer.counts["dropped"]) == (3, 13)
    with worker(url, bundle), Consumer("audio", "digits", url=url, start="beginning") as consumer:
        producer.flush()
        results = collect(consumer, ["s"])["s"]
    gaps = [note for result in results for note in result.notes]
    assert {gap["kind"] for gap in gaps} == {"gap"}
    assert sum(gap["got_seq"] - gap["expected_seq"] for gap in gaps) == producer.counts["dropped"]
    last = gaps[-1]["got_seq"]
    at = 10 * (last - in_the_log[0][0])
    assert spoken([result for result in results if result.seq >= last]) == whole(bundle, x[at:])
    assert producer.counts == {"pushed": 7, "dropped": 13}


def test_a_redis_that_is_silent_holds_up_no_push(make: Make, own: EmbeddedServer) -> None:
    producer = make(url=own.url, max_waiting=5, timeout_s=1)
    producer.push("s", X)
    producer.flush()
    frozen(own, True)
    try:
        for stream in ["s", "new"] * 10:  # not even for the first number of a stream
            began_s = time.monotonic()
            producer.push(stream, Y)
            assert time.monotonic() - began_s < 0.5
        with pytest.raises(BrokerUnavailable, match="5 chunks still wait"):
            producer.flush(0)
    finally:
        frozen(own, False)
    producer.flush(20)
    assert producer.counts["dropped"] == 15
    with redis.Redis.from_url(own.url) as client:
        for stream in ("s", "new"):
            seqs = list(dict.fromkeys(seq for seq, _, _ in stored(client, stream)))
            assert seqs[-1] - seqs[0] > len(seqs)  # a gap
            assert stored(client, stream)[-1][1] == Y.tobytes()  # the newest is there


def test_a_server_that_comes_back_gets_what_waited(make: Make, own: EmbeddedServer) -> None:
    producer = make(url=own.url)
    producer.push("s", X)
    producer.flush()
    own.close()
    for part in (Y, X):
        producer.push("s", part)
    with pytest.raises(BrokerUnavailable, match=r"2 chunks still wait after 0\.1 s"):
        producer.flush(0.1)
    own.start()
    producer.flush(20)
    with redis.Redis.from_url(own.url) as client:
        assert effective(stored(client, "s")) == [X.tobytes(), Y.tobytes(), X.tobytes()]


def test_an_end_whose_reply_was_lost_ends_its_stream_once(make: Make, own: EmbeddedServer, tmp_path: Path) -> None:
    """Sent again it finds the partition full, and waits as the oldest: it is stored, under the number that it has."""
    bundle = zoo.bundle("sensor")
    x = zoo.signal(bundle.manifest.input, 40)
    with Proxy(str(own.socket_path), str(tmp_path / "proxy.sock")) as proxy, redis.Redis.from_url(own.url) as client:
        producer = make(**SENSOR, url=proxy.url, partitions=1, max_backlog=2, max_waiting=4)
        producer.push("s", x[:20])
        producer.flush()
        proxy.lose_reply(b"sb_append")
        producer.push("s", x[20:], end=True)
        with pytest.raises(BacklogFull):
            producer.flush(1)
        for _ in range(6):
            producer.push("t", x)
        with worker(own.url, bundle), Consumer("audio", "digits", url=own.url, start="beginning") as consumer:
            producer.flush()
            producer.push("t", x, end=True)
            producer.flush()
            found = collect(consumer, ["s", "t"])
        seqs = [seq for seq, _, _ in stored(client, "s", 1)]
    assert len(set(seqs)) == 2
    assert sum(result.end for result in found["s"]) == 1
    assert spoken(found["s"]) == whole(bundle, x)
    assert (producer.counts["dropped"], producer.counts["dropped_ends"]) == (3, 0)


def test_close_sends_what_it_can_and_counts_the_rest(make: Make, redis_client: redis.Redis) -> None:
    content, full = make(max_waiting=1000), make(topic="audio", partitions=4, max_backlog=30, timeout_s=0.1)
    for _ in range(20):
        content.push("s", X)
    content.close()
    assert len(stored(redis_client, "s")) == content.counts["pushed"] == 20
    for _ in range(15):
        full.push("s", X)
    full.push("s", Y, end=True)
    full.close()
    assert full.counts["pushed"] + full.counts["dropped"] == 16
    assert full.counts["dropped_ends"] == 1
    assert len(stored(redis_client, "s")) <= 30


def test_numbers_are_told_as_soon_as_they_are_known(make: Make, redis_client: redis.Redis) -> None:
    producer = make()
    assert producer.push_many([("s", X, False), ("t", X, False)]) == [-1, -1]
    producer.flush()
    last = stored(redis_client, "s")[-1][0]
    assert producer.push("s", Y, end=True) == last + 1
    assert producer.push_many([]) == []


def test_what_is_wrong_with_a_push_is_told_at_once(make: Make, redis_client: redis.Redis) -> None:
    producer = make()
    with pytest.raises(ChunkRejected):
        producer.push_many([("s", X, False), ("{", X, False)])
    with pytest.raises(ConfigError, match="twice"):
        producer.push_many([("s", X, False), ("s", X, False)])
    producer.flush()
    assert redis_client.keys("*:in") == []


@pytest.mark.parametrize("call", ["push", "flush"])
def test_what_ends_the_sending_is_told_once_and_then_tried_again(
    make: Make, redis_client: redis.Redis, call: str
) -> None:
    producer = make(partitions=1)
    redis_client.set(log_key("audio", 0), "not a log")
    producer.push("s", X)
    with pytest.raises(ConfigError, match="another type"):
        producer.flush()
    redis_client.delete(log_key("audio", 0))
    if call == "push":
        producer.push("s", Y)
    producer.flush()
    assert effective(stored(redis_client, "s", 1)) == [X.tobytes()] + [Y.tobytes()] * (call == "push")


def test_a_stream_that_another_takes(make: Make, redis_client: redis.Redis) -> None:
    one, two = make(), make()
    one.push_many([("s", X, False), ("t", X, False)])
    one.flush()
    two.push("s", Y)
    two.flush()
    one.push_many([("s", X, False), ("t", Y, False)])
    one.flush()
    with pytest.raises(Fenced, match="'s'"):
        one.push("s", X)
    assert one.counts == {"pushed": 3, "fenced": 1}
    assert [data for _, data, _ in stored(redis_client, "s")] == [X.tobytes(), Y.tobytes()]
    assert effective(stored(redis_client, "t")) == [X.tobytes(), Y.tobytes()]


def test_it_goes_on_where_another_stopped(make: Make, redis_client: redis.Redis) -> None:
    before, after = make(), make(max_backlog=2)
    before.push("s", X)
    before.close()
    found = after.resume("s")
    assert found.samples == 100
    assert after.push("s", Y) == found.next_seq
    after.flush()
    after.push("s", X)  # the log is full: it waits
    with pytest.raises(ConfigError, match=r"flush\(\) before you resume"):
        after.resume("s")
    redis_client.delete(log_key("audio", partition_of("s", 4)))
    after.flush()
    assert after.resume("s").samples == 300
    assert stored(redis_client, "s") == [(found.next_seq + 1, X.tobytes(), False)]


def test_no_memory_for_streams_that_were_seen(make: Make, url: str) -> None:
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 6)
    producer = make(**SENSOR, max_streams=2)
    with worker(url, bundle), Consumer("audio", "digits", url=url, start="beginning") as consumer:
        for at in range(0, max(map(len, signals.values())), 20):
            for name, x in signals.items():
                if at < len(x):
                    producer.push(name, x[at : at + 20], end=at + 20 >= len(x))
            producer.flush()
            assert len(producer._waiting._lives) <= 2
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    assert not [note for results in found.values() for result in results for note in result.notes]


def test_pushes_from_a_callback_of_audio_hardware(make: Make, redis_client: redis.Redis) -> None:
    """Thousands of short pushes in a row: all are stored, in order, though nobody waited for one of them."""
    producer = make(max_waiting=10_000)
    parts = [np.full(8, i, np.int16) for i in range(3000)]
    for part in parts:
        producer.push("s", part)
    producer.flush(30)
    assert b"".join(effective(stored(redis_client, "s"))) == np.concatenate(parts).tobytes()
