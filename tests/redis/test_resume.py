"""A producer that restarts asks where its stream stands, and goes on with exactly the sample that is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline.broker.appender import Appender, AppendFenced, Pushed
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import log_key, partition_of, stand_key
from pipeline.consumer import Consumer
from pipeline.errors import BrokerUnavailable, ChunkRejected
from pipeline.producer import Standing
from tests import zoo
from tests.harness import assert_exact, collect, lively, until, worker

from .producers import KINDS, Make, X, Y, effective, making, stored
from .proxy import Proxy
from .test_cluster import cluster

__all__ = ["cluster"]  # a fixture


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def make(request: pytest.FixtureRequest, url: str) -> Iterator[Make]:
    with making(request.param, url) as make:
        yield make


def stand(stream: str) -> str:
    return stand_key("audio", partition_of(stream, 4), stream)


def test_a_stream_that_was_never_seen(make: Make, redis_client: redis.Redis) -> None:
    producer = make()
    assert producer.resume("s") == Standing("s", next_seq=None, samples=0, ended=False)
    assert not redis_client.exists(stand("s"))
    producer.push("s", X, end=True)
    assert effective(stored(redis_client, "s")) == [X.tobytes()]
    with pytest.raises(ChunkRejected):
        producer.resume("{")


def test_a_live_stream_goes_on_under_the_next_number(make: Make, redis_client: redis.Redis) -> None:
    dead = make()
    first = dead.push("s", X)
    dead.push("s", Y)
    for _ in range(2):  # to ask twice changes nothing
        producer = make()
        assert producer.resume("s") == Standing("s", first + 2, samples=200, ended=False)
    assert producer.push("s", X) == first + 2
    assert effective(stored(redis_client, "s")) == [X.tobytes(), Y.tobytes(), X.tobytes()]


def test_an_ended_stream_is_told_as_such_and_begins_anew(make: Make) -> None:
    dead = make()
    dead.push("s", X)
    last = dead.push("s", Y, end=True)
    producer = make()
    for _ in range(2):
        assert producer.resume("s") == Standing("s", next_seq=None, samples=200, ended=True)
    assert producer.push("s", X) > last
    assert make().resume("s").samples == 100


def test_only_what_is_stored_counts_and_once(make: Make, proxy: Proxy, redis_client: redis.Redis) -> None:
    """The reply of Y is lost: it is stored, its producer does not know, and sends it again, or never does."""
    patient, hasty = make(url=proxy.url), make(url=proxy.url, timeout_s=0)
    for producer, stream in ((patient, "twice"), (hasty, "once")):
        producer.push(stream, X)
        proxy.lose_reply()
        if producer is patient:
            producer.push(stream, Y)
        else:
            with pytest.raises(BrokerUnavailable):
                producer.push(stream, Y)
        assert proxy.lost.is_set()
        assert make().resume(stream).samples == 200
    assert [len(stored(redis_client, stream)) for stream in ("twice", "once")] == [3, 2]


def test_the_same_producer_asks_after_a_push_that_may_have_failed(
    make: Make, proxy: Proxy, redis_client: redis.Redis
) -> None:
    producer = make(url=proxy.url, timeout_s=0)
    producer.push("s", X)
    proxy.lose_reply()
    with pytest.raises(BrokerUnavailable):
        producer.push("s", Y)
    found = producer.resume("s")
    assert found.samples == 200
    assert producer.push("s", X[:50]) == found.next_seq
    assert effective(stored(redis_client, "s")) == [X.tobytes(), Y.tobytes(), X[:50].tobytes()]


@pytest.mark.parametrize("own", [False, True], ids=["of a dead producer", "of its own"])
def test_what_was_still_on_its_way_comes_too_late(make: Make, redis_client: redis.Redis, own: bool) -> None:
    """Were it stored after the answer, its number would be taken, and what is pushed now dropped as a duplicate."""
    before = make()
    before.push("s", X)
    claim = redis_client.get(stand("s")).split()[3].decode()
    after = before if own else make()
    found = after.resume("s")
    with pytest.raises(AppendFenced, match="'s'"):
        Appender(redis_client, "audio", 4).append([Pushed("s", found.next_seq, Y.tobytes(), False, claim)])
    after.push("s", X[:7])
    assert effective(stored(redis_client, "s")) == [X.tobytes(), X[:7].tobytes()]


def test_after_a_gap_it_counts_from_there_as_workers_do(make: Make, own: EmbeddedServer) -> None:
    producer = make(url=own.url, timeout_s=0)
    producer.push("s", X)
    own.close()
    with pytest.raises(BrokerUnavailable):
        producer.push("s", X)
    own.start()
    producer.push("s", Y[:30])  # others never pass for what failed: there is a gap
    assert make(url=own.url).resume("s").samples == 30


def test_neither_groups_nor_trimming_nor_a_restart_of_the_server_change_the_answer(
    make: Make, own: EmbeddedServer
) -> None:
    bundle = zoo.bundle("digits")
    first = make(url=own.url, partitions=1).push("s", X)
    answers = [make(url=own.url, partitions=None).resume("s")]
    with worker(own.url, bundle, group="a"), worker(own.url, bundle, group="b"):
        answers.append(make(url=own.url, partitions=None).resume("s"))
    with redis.Redis.from_url(own.url) as client:
        client.xtrim(log_key("audio", 0), maxlen=0)
        answers.append(make(url=own.url, partitions=None).resume("s"))
    own.close()
    own.start()
    answers.append(make(url=own.url, partitions=None).resume("s"))
    assert answers == 4 * [Standing("s", first + 1, 100, False)]


def test_a_stream_that_was_idle_too_long_begins_anew(
    make: Make, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATEBELT_IDLE_MS", "100")
    before, after = make(), make()
    last = before.push("s", X)
    found = after.resume("s")
    assert found.samples == 100
    assert 0 < redis_client.pttl(stand("s")) <= 100  # to ask does not prolong it: a worker looks at chunks alone
    until(lambda: not redis_client.exists(stand("s")), "the end of the idle time")
    assert make().resume("s") == Standing("s", None, 0, False)
    assert make().push("s", X) > last


def test_a_tombstone_goes_earlier_than_a_live_streams_stand(make: Make, redis_client: redis.Redis) -> None:
    producer = make()
    producer.push_many([("live", X, False), ("ended", X, True)])
    assert redis_client.pttl(stand("ended")) <= 600_000 < 3_000_000 < redis_client.pttl(stand("live")) <= 3_600_000


def test_no_redis_within_the_time_that_was_given(make: Make, own: EmbeddedServer) -> None:
    producer = make(url=own.url, timeout_s=0.1)
    own.close()
    with pytest.raises(BrokerUnavailable):
        producer.resume("s")


def test_any_number_of_restarts_yield_what_the_whole_signal_yields(make: Make, url: str) -> None:
    """Producers die after any push; the next cuts elsewhere. Workers of two groups commit all the while."""
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 5, blocks=600)
    rng = np.random.default_rng(3)
    spec = {"sample_rate_hz": 50, "channels": 6, "sample_type": "float32", "max_chunk_bytes": 24 * 40}

    def live_and_die() -> bool:
        """A producer's short life: some pushes to each stream. Whether all had ended before."""
        producer, all_ended = make(**spec), True
        for name, signal in signals.items():
            found = producer.resume(name)
            assert found.ended == (found.samples == len(signal))
            all_ended &= found.ended
            at = found.samples
            while at < len(signal) and rng.random() < 0.7:
                stop = min(len(signal), at + int(rng.integers(0, 90)))
                producer.push(name, signal[at:stop], end=stop == len(signal))
                at = stop
        return all_ended

    make(**spec)  # creates the topic
    lives = 1
    with (
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
        worker(url, bundle, publish="chunks"),
        worker(url, bundle, group="slow", read_entries=4),
    ):
        while not live_and_die():
            lives += 1
        found = collect(consumer, list(signals))
    assert lives > 5
    assert not [note for results in found.values() for result in results for note in result.notes]
    assert_exact(bundle, signals, found)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "own", fsync="no") as server:
        yield server


@pytest.mark.usefixtures("cluster")
def test_in_cluster_mode_every_call_stays_within_one_slot(request: pytest.FixtureRequest) -> None:
    names = [f"s-{i}" for i in range(20)]
    url = f"unix://{request.getfixturevalue('cluster').connection_pool.connection_kwargs['path']}"
    with making(KINDS["blocking"], url) as make:
        make().push_many([(name, X, False) for name in names])
        producer = make()
        assert {producer.resume(name).samples for name in names} == {100}
        producer.push_many([(name, Y, True) for name in names])
        assert all(producer.resume(name).ended for name in names)
