"""Producers whose pushes count only when a replica has them: with a real replica, frozen, promoted and taken away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from pipeline.broker.appender import Append, AppendFailed, Pushed
from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.exchange import exchange
from pipeline.broker.stand import Terms
from pipeline.errors import BrokerUnavailable
from tests.harness import until

from .helpers import frozen
from .producers import KINDS, Make, X, Y, effective, making, stored
from .test_cluster import free_port


@pytest.fixture(scope="module", params=["embedded", "redis-server"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EmbeddedServer]]:
    """A primary and its replica."""
    binary = None
    if request.param == "redis-server" and (binary := shutil.which("redis-server")) is None:
        pytest.skip("no redis-server on the PATH")
    folder, port = tmp_path_factory.mktemp("pair"), free_port()
    fast = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
    with (
        EmbeddedServer(folder / "primary", fsync="no", port=port, binary=binary, settings=fast) as primary,
        EmbeddedServer(folder / "replica", fsync="no", port=free_port(), binary=binary, settings=fast) as replica,
        closing(connect(replica.url)) as client,
    ):
        follow(client, port)
        yield [primary, replica]


def follow(client: redis.Redis, port: int) -> None:
    client.execute_command("REPLICAOF", "127.0.0.1", port)
    until(lambda: client.info("replication").get("master_link_status") == "up", "the replica to follow")


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def make(request: pytest.FixtureRequest, pair: list[EmbeddedServer]) -> Iterator[Make]:
    with connect(pair[0].url) as client:
        client.flushall()
    with making(request.param, pair[0].url) as make:
        yield make


@pytest.fixture
def clients(pair: list[EmbeddedServer]) -> Iterator[list[redis.Redis]]:
    with connect(pair[0].url) as primary, connect(pair[1].url) as replica:
        yield [primary, replica]


def test_a_push_that_returned_is_on_the_replica(
    make: Make, clients: list[redis.Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATEBELT_DURABILITY", "replicated")
    producer = make()
    for i in range(50):
        producer.push("s", X[: i + 1])
        assert len(stored(clients[1], "s")) == i + 1
    assert clients[0].info("commandstats")["cmdstat_wait"]["calls"] >= 50


def test_without_a_confirmation_a_push_is_not_done_and_the_log_does_not_fill(
    make: Make, pair: list[EmbeddedServer], clients: list[redis.Redis]
) -> None:
    producer = make(replicas=1, timeout_s=1)
    first = producer.push("s", X)
    with frozen(pair[1]), pytest.raises(BrokerUnavailable, match="0 of 1 replicas confirmed 1 chunks within 500 ms"):
        producer.push("s", Y)
    assert producer.counts["resent"] >= 1
    assert producer.push("s", Y) == first + 1
    assert stored(clients[0], "s") == [(first, X.tobytes(), False), (first + 1, Y.tobytes(), False)]
    assert stored(clients[1], "s") == stored(clients[0], "s")


def test_a_push_waits_for_a_replica_that_is_slow(
    make: Make, pair: list[EmbeddedServer], clients: list[redis.Redis]
) -> None:
    """The last of several tries confirms what the first has stored, on another connection too."""
    producer = make(replicas=1, timeout_s=30)
    producer.push("s", X)
    assert pair[1].pid is not None
    with frozen(pair[1]):
        terms = Terms("audio", 4, replicas=1, replicas_timeout_ms=50)
        claim = clients[0].get(clients[0].keys("*/s")[0]).split()[3].decode()
        chunk = Pushed("s", stored(clients[0], "s")[-1][0] + 1, Y.tobytes(), False, claim)
        for _ in range(2):
            with connect(pair[0].url) as through, pytest.raises(AppendFailed) as failed:
                exchange(through, Append(terms, [chunk]))
            assert (failed.value.ids, failed.value.unknown, failed.value.refused) == ([None], [0], [])
    with connect(pair[0].url) as through:
        assert exchange(through, Append(Terms("audio", 4, replicas=1), [chunk])) == [b""]  # stored before
    assert effective(stored(clients[1], "s")) == [X.tobytes(), Y.tobytes()]
    assert len(stored(clients[1], "s")) == 2


def test_with_drop_oldest_the_sender_waits_for_the_replica(
    make: Make, pair: list[EmbeddedServer], clients: list[redis.Redis]
) -> None:
    producer = make(replicas=1, when_full="drop_oldest", timeout_s=1)
    producer.push("s", X)
    producer.flush()
    with frozen(pair[1]):
        producer.push("s", Y)
        with pytest.raises(BrokerUnavailable, match="1 chunks still wait"):
            producer.flush(1.5)
    producer.flush(10)
    assert producer.counts["pushed"] == 2
    assert effective(stored(clients[1], "s")) == [X.tobytes(), Y.tobytes()]


def test_after_a_failover_a_stream_goes_on_where_the_replica_has_it(
    make: Make, pair: list[EmbeddedServer], clients: list[redis.Redis]
) -> None:
    """The tail that was not replicated is gone, and the stand with it: what is missing is pushed again, exactly."""
    before = make(replicas=1, timeout_s=1)
    first = before.push("s", X)
    port = int(clients[0].config_get("port")["port"])
    with frozen(pair[1]), pytest.raises(BrokerUnavailable):
        before.push("s", Y)
    # What the primary sent lies in the replica's socket; a promotion discards what it has not read of it, or has it.
    clients[1].execute_command("REPLICAOF", "NO", "ONE")
    try:
        after = make(url=pair[1].url)
        found = after.resume("s")
        assert found.samples in (100, 200)
        assert found.next_seq == first + found.samples // 100
        after.push("s", X if found.samples == 200 else Y)
        assert effective(stored(clients[1], "s"))[:2] == [X.tobytes(), Y.tobytes()]
    finally:
        follow(clients[1], port)


def test_too_few_replicas(make: Make, clients: list[redis.Redis]) -> None:
    clients[0].set("x", "y")
    assert clients[0].wait(1, 10_000) == 1  # it follows again, after the test before this one
    producer = make(replicas=2, timeout_s=2)
    with pytest.raises(BrokerUnavailable, match="1 of 2 replicas confirmed"):
        producer.push("s", X)
