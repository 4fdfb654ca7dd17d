"""What a worker asks beside its batches: it never waits for the answer, and gets it, also where it is never idle."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline import status
from pipeline.broker.asked import Asked
from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys, partition_of, workers_key
from pipeline.broker.lease import holders
from pipeline.broker.members import Member, join
from pipeline.broker.partition import Commit, commit
from pipeline.errors import BrokerUnavailable
from pipeline.ownership import Ownership
from pipeline.settings import Settings, load_settings
from pipeline.task import Task
from pipeline.upkeep import Upkeep
from tests import zoo
from tests.harness import make_producer, until, worker

from .helpers import frozen, grant, ids_of, push
from .proxy import Proxy

PARTITIONS = [Keys("calls", "digits", p) for p in range(3)]
NOT_SOON_MS = 3_600_000


def settings(**given: object) -> Settings:
    return load_settings(topic="calls", group="digits", bundle="digits", **{"input_retention_ms": 1, **given})


def lengths(client: redis.Redis) -> list[int]:
    return [client.xlen(keys.log) for keys in PARTITIONS]


def read_all(client: redis.Redis) -> None:
    """Ten old chunks in each partition; all but the last are read."""
    for keys in PARTITIONS:
        push(client, keys, ids_of(1, 10))
        commit(client, grant(client, keys).lease, Commit(b"0-0", b"9-0", 9))


def connected(client: redis.Redis) -> None:
    """As a worker is after a while: with a connection for each of several questions."""
    asked = [Asked(client, [("PING",)]) for _ in range(4)]
    assert [each.replies() for each in asked] == [[b"PONG"]] * 4


def until_trimmed(upkeep: Upkeep, of: Iterable[int], client: redis.Redis, wanted: list[int]) -> None:
    def trimmed() -> bool:
        upkeep.trim(of)
        return lengths(client) == wanted

    until(trimmed, f"the logs to be trimmed to {wanted}")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that may be stopped: nobody else waits for it."""
    with EmbeddedServer(tmp_path, fsync="no") as server:
        yield server


@pytest.mark.parametrize("busy", [False, True])
def test_nothing_waits_for_a_server_that_is_silent(own: EmbeddedServer, busy: bool) -> None:
    with connect(own.url, busy=busy) as client:
        read_all(client)
        upkeep = Upkeep(client, settings(trim_every_ms=1))
        connected(client)
        assert upkeep.lag(PARTITIONS) == 3
        push(client, PARTITIONS[0], ids_of(11, 15))
        with frozen(own):
            assert [upkeep.lag(PARTITIONS) for _ in range(3)] == [3] * 3
            for _ in range(3):
                upkeep.trim(range(3))
        until(lambda: upkeep.lag(PARTITIONS) == 8, "the lag as it is now")
        until_trimmed(upkeep, range(3), client, [7, 2, 2])
        upkeep.forget()


def test_what_was_asked_of_other_partitions_is_not_taken_for_an_answer(client: redis.Redis) -> None:
    read_all(client)
    upkeep = Upkeep(client, settings())
    assert upkeep.lag(PARTITIONS) == 3
    push(client, PARTITIONS[0], ids_of(11, 15))
    seen = set[int]()
    until(lambda: upkeep.lag(PARTITIONS) == 8, "the lag as it is now")
    until(lambda: seen.add(upkeep.lag(PARTITIONS[1:])) or 2 in seen, "the lag of those that are left")  # type: ignore[func-returns-value]
    assert seen == {8, 2}
    upkeep.forget()


def test_one_partition_is_trimmed_at_a_time_and_then_the_next(client: redis.Redis) -> None:
    read_all(client)
    upkeep = Upkeep(client, settings(trim_every_ms=NOT_SOON_MS))
    until_trimmed(upkeep, range(3), client, [2, 10, 10])
    upkeep.trim(range(3))
    assert lengths(client) == [2, 10, 10]
    soon = Upkeep(client, settings(trim_every_ms=1))
    until_trimmed(soon, [1, 2], client, [2, 2, 2])
    upkeep.forget()
    soon.forget()


def test_all_are_trimmed_at_once_where_nothing_goes_on_without(client: redis.Redis) -> None:
    read_all(client)
    upkeep = Upkeep(client, settings(trim_every_ms=NOT_SOON_MS))
    upkeep.trim_all(range(3))
    assert lengths(client) == [2, 2, 2]
    for keys in PARTITIONS:
        push(client, keys, ids_of(11, 12))
        commit(client, grant(client, keys).lease, Commit(b"9-0", b"12-0", 3))
    upkeep.trim_all(range(3))
    assert lengths(client) == [4, 4, 4]


def test_a_group_that_nobody_works_for_is_found_out(client: redis.Redis) -> None:
    """Which groups there are is told with every answer: a trim goes by those of the one before."""
    keys = PARTITIONS[0]
    push(client, keys, ids_of(1, 10))
    commit(client, grant(client, keys).lease, Commit(b"0-0", b"10-0", 10))
    client.xgroup_create(keys.log, "left", "4-0")
    upkeep = Upkeep(client, settings(trim_every_ms=50, outage_ms=1))
    first = client.xrange(keys.log, count=1)[0][0]
    assert first == b"1-0"
    seen = {first}

    def trimmed() -> bool:
        upkeep.trim([0])
        seen.update(id_ for id_, _ in client.xrange(keys.log, count=1))
        return client.xlen(keys.log) == 1

    until(trimmed, "the log to be trimmed")
    assert b"4-0" in seen  # at first the unknown group kept what it has still to read
    upkeep.forget()


def test_no_log_is_no_error(client: redis.Redis) -> None:
    upkeep = Upkeep(client, settings(trim_every_ms=1))
    assert upkeep.lag(PARTITIONS) == 0
    for _ in range(20):
        upkeep.trim([0])
        client.ping()
    upkeep.forget()


def test_an_answer_that_does_not_come_is_asked_for_again(own: EmbeddedServer) -> None:
    with connect(own.url, 1.0, busy=True) as client:
        read_all(client)
        upkeep = Upkeep(client, settings(trim_every_ms=1))
        connected(client)
        assert upkeep.lag(PARTITIONS) == 3
        with frozen(own):
            with pytest.raises(BrokerUnavailable, match="timeout"):
                until(lambda: upkeep.lag(PARTITIONS) < 0, "an error")
            with pytest.raises(BrokerUnavailable, match="timeout"):
                until(lambda: upkeep.trim(range(3)) is not None, "an error")
        assert upkeep.lag(PARTITIONS) == 3
        until_trimmed(upkeep, range(3), client, [2, 2, 2])
        upkeep.forget()


def ownership(client: redis.Redis, owner: str) -> Ownership:
    spec = zoo.bundle("audio").manifest.input
    return Ownership(
        client,
        "calls",
        "digits",
        owner,
        partitions=4,
        lease_ms=60_000,
        fingerprint="f0",
        arithmetic="00",
        counts=Counter(),
        make_task=lambda partition: Task(partition, 4, spec, settings().policy),
        forget=lambda _: 0,
        catch_up=lambda _: None,
    )


def test_who_has_work_to_do_does_not_wait_to_hear_who_lives(own: EmbeddedServer) -> None:
    with connect(own.url, busy=True) as client:
        mine = ownership(client, "a")
        mine.keep()
        assert sorted(mine.owned) == [0, 1, 2, 3]
        other = Member("b", 0, "f0", "00")
        join(client, "calls", "digits", other, 60_000)
        until(lambda: mine.beat_s <= 0.001, "the next beat")
        with frozen(own):
            # It asks, and a read may then wait, though it is not answered yet.
            until(lambda: mine.look() or mine.beat_s > 0.001, "it to ask")
            assert [mine.look() for _ in range(3)] == [False] * 3
        until(mine.look, "that it holds too much")
        assert mine.look()  # until it is seen to
        assert sorted(mine.owned) == [0, 1, 2, 3]
        mine.keep()
        assert len(mine.owned) == mine.share == 2
        assert not mine.look()
        join(client, "calls", "digits", other, 1)
        until(mine.look, "that it holds too little")
        mine.keep()
        assert sorted(mine.owned) == [0, 1, 2, 3]
        mine.close(catch_up=False)


def test_an_answer_that_was_cut_off_keeps_no_lease_from_being_given_back(client: redis.Redis, proxy: Proxy) -> None:
    of = [Keys("calls", "digits", p) for p in range(4)]
    with connect(proxy.url) as through:
        mine = ownership(through, "a")
        mine.keep()
        assert holders(client, of) == ["a"] * 4
        proxy.cut_reply(b"sb_join")
        until(lambda: mine.look() or mine._joining is not None, "it to ask")
        mine.close(catch_up=False)
    assert holders(client, of) == [None] * 4


def test_a_look_tells_the_server_that_the_worker_lives(client: redis.Redis) -> None:
    mine, me = ownership(client, "a"), Member("a", 4, "f0", "00")
    mine.keep()
    client.delete(workers_key("calls", "digits"))
    observer = Member("observer", 0, "other", "00")

    def told() -> bool:
        assert not mine.look()
        client.ping()
        return me in join(client, "calls", "digits", observer, 60_000)

    until(told, "a look")
    mine.close(catch_up=False)


@contextmanager
def unbroken_load(url: str, partitions: Collection[int]) -> Iterator[None]:
    """A chunk every few ms, in some of four partitions, until the end."""
    bundle, over = zoo.bundle("audio"), threading.Event()
    names = [name for name in map("s{}".format, range(40)) if partition_of(name, 4) in partitions]

    def push_on() -> None:
        chunk = np.zeros(80, np.int16)
        with make_producer(url, bundle, partitions=4) as producer:
            while not over.wait(0.005):
                producer.push_many([(name, chunk, False) for name in names])

    with ThreadPoolExecutor(1) as pusher:
        pushed = pusher.submit(push_on)
        try:
            yield
        finally:
            over.set()
            pushed.result()


def test_a_worker_that_is_never_idle_keeps_trims_reports_and_shares(
    url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    bundle, lease_ms = zoo.bundle("audio"), 600
    keys = [Keys("audio", "digits", p) for p in range(4)]
    given = {"lease_ms": lease_ms, "input_retention_ms": 1, "trim_every_ms": 100}

    def told() -> list[status.Status]:
        return status.read(tmp_path, url, "audio", "digits")

    def held() -> list[bytes]:
        return [redis_client.get(each.lease) or b"" for each in keys]

    with unbroken_load(url, {0, 1, 2}), worker(url, bundle, **given, status_dir=str(tmp_path)) as first:
        until(lambda: all(held()), "the leases")
        before, at_s = held(), time.time()
        until(lambda: any(each.at_s > at_s + 3 * lease_ms / 1000 for each in told()), "reports")
        assert held() == before  # of the one where nothing comes in as well
        assert len(first.owned) == 4
        for each in keys[:3]:  # what was trimmed is less than what was pushed
            log = redis_client.xinfo_stream(each.log)
            assert log["length"] < log["entries-added"]
        with worker(url, bundle, **given) as second:
            until(lambda: len(first.owned) == len(second.owned) == 2, "even shares")
        until(lambda: len(first.owned) == 4, "all of them again")
