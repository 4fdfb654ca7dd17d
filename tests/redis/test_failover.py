"""A planned failover: the old primary lives on as a replica, and the name in the URL leads to the new one."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline.broker.appender import Append, AppendFailed, Pushed
from pipeline.broker.asked import round_trip
from pipeline.broker.connection import connect, connect_async, translate
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.exchange import exchange
from pipeline.broker.failover import History
from pipeline.broker.keys import Keys
from pipeline.broker.partition import Commit, commit, commit_many
from pipeline.broker.stand import Terms
from pipeline.consumer import Consumer
from pipeline.errors import BrokerUnavailable
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, lively, make_producer, random_cut, until, worker

from .helpers import grant, ids_of, push
from .pair import Pair
from .producers import KINDS, X, Y, effective, making, stored


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("replicas", [0, 1])
def test_a_push_finds_the_new_primary(pair: Pair, kind: Callable[..., object], replicas: int) -> None:
    with making(kind, pair.url) as make:
        producer = make(replicas=replicas, timeout_s=10)
        producer.push("s", X)
        pair.fail_over()
        producer.push("s", Y)
    assert effective(stored(pair.clients[1], "s")) == [X.tobytes(), Y.tobytes()]


@pytest.mark.parametrize("durability", ["fast", "replicated"])
def test_a_worker_goes_on_at_the_new_primary(pair: Pair, durability: str) -> None:
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 6)
    batches = list(cut_up(bundle, signals, random_cut))
    half = len(batches) // 2
    with (
        make_producer(pair.url, bundle, replicas=1) as producer,
        worker(pair.url, bundle, publish="chunks", durability=durability, lease_ms=3000),
        Consumer("audio", "digits", url=pair.url, start="beginning") as consumer,
    ):
        for batch in batches[:half]:
            producer.push_many(batch)
        pair.fail_over()
        for batch in batches[half:]:
            producer.push_many(batch)
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)


def test_a_lost_commit_is_noticed_though_nothing_more_is_pushed(pair: Pair) -> None:
    """The owner of a partition that fell silent has nothing to commit: it asks where it stands when it renews."""
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 6)
    one, two = pair.clients
    logs = [Keys("audio", "digits", partition).log for partition in range(4)]
    with (
        make_producer(pair.url, bundle) as producer,
        worker(pair.url, bundle, publish="chunks", durability="fast", lease_ms=6000) as working,
    ):
        producer.push_many([(name, samples[:50], False) for name, samples in signals.items()])
        until(lambda: working.counts["chunks"] == 6, "the first chunks")
        until(lambda: one.wait(1, 100) == 1, "the replica")
        two.execute_command("REPLICAOF", "NO", "ONE")
        producer.push_many([(name, samples[50:], True) for name, samples in signals.items()])
        until(lambda: working.counts["chunks"] == 12, "the commits that the failover loses")
        for log in logs:  # of what came since, the new primary has the chunks alone
            (last, *_), *_ = two.xrevrange(log, count=1) or [(b"-",)]
            for id_, fields in one.xrange(log, min=b"(" + last if last != b"-" else last):
                two.xadd(log, fields, id=id_)
        pair.fail_over()
        assert all(two.pttl(Keys("audio", "digits", partition).lease) > 0 for partition in range(4))
        with Consumer("audio", "digits", url=pair.url, start="beginning") as consumer:
            found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)


def test_a_commit_of_what_another_history_had_is_not_sent_to_a_new_primary(pair: Pair) -> None:
    """Two servers that were primaries for a while gave two chunks the same id."""
    bundle = zoo.bundle("sensor")
    first, lost, kept = (zoo.signal(bundle.manifest.input, 40, seed=seed) for seed in range(3))
    one, two = pair.clients
    log = Keys("audio", "digits", 0).log
    with (
        make_producer(pair.url, bundle, replicas=1, partitions=1) as producer,
        worker(pair.url, bundle, publish="chunks", durability="fast", partitions=1) as working,
    ):
        producer.push("s", first)
        until(lambda: working.counts["chunks"] == 1, "the first chunk")
        until(lambda: one.wait(1, 100) == 1, "the replica")
        two.execute_command("REPLICAOF", "NO", "ONE")
        pair.proxy.lead_to(str(pair.servers[1].socket_path))
        pair.proxy.cut_request(b"sb_commit")
        ((last, fields),) = two.xrange(log)
        ms = int(last.split(b"-")[0]) + 1
        for client, samples in ((two, kept), (one, lost)):
            entry = {
                b"stream": b"s",
                b"seq": b"%d" % (int(fields[b"seq"]) + 1),
                b"data": samples.tobytes(),
                b"end": b"1",
            }
            client.xadd(log, entry, id=f"{ms}-0")
        with Consumer("audio", "digits", url=two_url(pair), start="beginning") as consumer:
            found = collect(consumer, ["s"])
    assert pair.proxy.happened["cut_request"] == 1
    assert working.counts["dropped_partitions"] == 1
    assert_exact(bundle, {"s": np.concatenate([first, kept])}, found)


def test_who_kept_what_it_read_is_refused_another_history_until_it_lets_go(pair: Pair) -> None:
    history = History()
    with connect(pair.url, history=history) as client:
        client.set("a", "b")
        pair.proxy.cut_all()
        with translate():
            until(lambda: answers(client), "the same server again")
        assert not history.changed
        pair.fail_over()
        for _ in range(3):
            with pytest.raises(BrokerUnavailable), translate():
                client.set("a", "c")
        assert history.changed
        assert pair.clients[1].get("a") == b"b"
        history.accept()
        assert client.set("a", "c")
        assert not history.changed


def test_a_server_that_starts_anew_has_another_history(tmp_path: Path) -> None:
    """It may have lost its last second."""
    history = History()
    with EmbeddedServer(tmp_path, fsync="always") as server, connect(server.url, history=history) as client:
        client.set("a", "b")
        server.close()
        server.start()
        with pytest.raises(BrokerUnavailable), translate():
            client.get("a")
        with pytest.raises(BrokerUnavailable, match="started anew"), translate():
            client.get("a")
        history.accept()
        assert client.get("a") == b"b"


def test_who_may_not_ask_for_the_history_is_not_shut_out(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, connect(server.url) as root:
        root.acl_setuser("poor", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-info"])
        url = f"{server.url}?username=poor&password=secret"
        with connect(url, history=History()) as client:
            assert client.set("a", "b")

        async def main() -> None:
            async with connect_async(url, history=History()) as client:
                assert await client.get("a") == b"b"

        asyncio.run(main())


def test_who_keeps_what_it_reads_does_not_read_of_a_replica(pair: Pair) -> None:
    history = History()
    with connect(pair.servers[1].url, history=history) as client:
        with pytest.raises(BrokerUnavailable, match="replica"), translate():
            client.get("a")
        assert not history.changed


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def two_url(pair: Pair) -> str:
    return pair.servers[1].url


def test_a_worker_that_ends_gives_back_its_leases_to_whoever_is_primary(pair: Pair) -> None:
    """Its last act is the first that it says to the new one."""
    bundle = zoo.bundle("sensor")
    one, two = pair.clients
    with (
        make_producer(pair.url, bundle, partitions=2),
        worker(pair.url, bundle, durability="fast", partitions=2, lease_ms=20_000) as working,
    ):
        until(lambda: len(working.owned) == 2, "the partitions")
        until(lambda: one.wait(1, 100) == 1, "the replica")
        two.execute_command("REPLICAOF", "NO", "ONE")
        pair.proxy.lead_to(str(pair.servers[1].socket_path))
        working.stop()
        pair.proxy.cut_all()
    assert not two.exists(*(Keys("audio", "digits", partition).lease for partition in range(2)))


def test_no_thread_is_admitted_to_another_history_while_one_is_let_in() -> None:
    """Of two that connect at once one finds the old server, one the new."""
    history, stop = History(), threading.Event()
    history.check(b"role:master\r\nmaster_replid:old\r\n")

    def old() -> None:
        while not stop.is_set():
            history.check(b"role:master\r\nmaster_replid:old\r\n")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=old)
    thread.start()
    admitted = 0
    try:
        for _ in range(100_000):
            with contextlib.suppress(redis.ConnectionError):
                history.check(b"role:master\r\nmaster_replid:new\r\n")
                admitted += 1
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)
    assert admitted == 0


def test_one_answer_of_a_replica_ends_all_connections_to_it(pair: Pair) -> None:
    """One that was idle would read what the old primary has, which may lag behind."""
    with connect(pair.url) as client:
        pool = client.connection_pool
        three = [pool.get_connection() for _ in range(3)]
        busy = three.pop()
        for connection in three:
            pool.release(connection)
        pair.fail_over()
        with pytest.raises(BrokerUnavailable, match="replica"), translate():
            client.set("a", "b")
        busy.send_command("PING")
        assert busy.read_response() in ("PONG", b"PONG")  # in use: it is not cut off from its replies
        pool.release(busy)
        three = [pool.get_connection() for _ in range(3)]
        for connection in three:
            connection.send_command("SET", "a", "b")
            assert connection.read_response() in ("OK", b"OK")
            pool.release(connection)


def test_one_answer_of_a_replica_ends_all_connections_to_it_asyncio(pair: Pair) -> None:
    async def main() -> None:
        client = connect_async(pair.url)
        pool = client.connection_pool
        three = [await pool.get_connection() for _ in range(3)]
        busy = three.pop()
        for connection in three:
            await pool.release(connection)
        pair.fail_over()
        with pytest.raises(BrokerUnavailable, match="replica"), translate():
            await client.set("a", "b")
        await busy.send_command("PING")
        assert await busy.read_response() in ("PONG", b"PONG")
        await pool.release(busy)
        three = [await pool.get_connection() for _ in range(3)]
        for connection in three:
            await connection.send_command("SET", "a", "b")
            assert await connection.read_response() in ("OK", b"OK")
            await pool.release(connection)
        await client.aclose()

    asyncio.run(main())


def test_the_other_replies_of_a_round_trip_are_read(pair: Pair) -> None:
    with connect(pair.url) as client:
        assert client.set("a", "b")
        pair.fail_over(renamed=False)
        replies = round_trip(client, [("SET", "a", "c"), ("GET", "a"), ("SET", "a", "d"), ("GET", "a")])
        assert [type(reply) for reply in replies[::2]] == [redis.exceptions.ReadOnlyError] * 2
        assert replies[1::2] == [b"b", b"b"]


def test_a_replica_that_is_to_wait_for_replicas_is_not_there_yet(pair: Pair) -> None:
    """WAIT is an error there, of no kind of its own: who sends again finds the primary."""
    keys = Keys("calls", "digits", 3)
    one, two = pair.clients
    push(one, keys, ids_of(1, 5))
    lease = grant(one, keys).lease
    pair.fail_over(renamed=False)
    (outcome,) = commit_many(one, [(lease, Commit(b"0-0", b"5-0", 5))], replicas=1)
    assert isinstance(outcome.error, BrokerUnavailable)
    assert "replica" in str(outcome.error)
    with pytest.raises(AppendFailed, match="replica") as failed:
        exchange(one, Append(Terms("calls", 4, replicas=1), [Pushed("s", 1, b"", False, "me/0")]))
    assert (failed.value.refused, failed.value.unknown) == ([0], [])
    assert commit(two, lease, Commit(b"0-0", b"5-0", 5)) is False
