"""What a worker asks beside its batches: it never waits for the answer, and gets it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from pipeline.broker.asked import Asked
from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys, workers_key
from pipeline.broker.members import Member, join
from pipeline.broker.partition import Commit, commit
from pipeline.errors import BrokerUnavailable
from pipeline.ownership import Ownership
from pipeline.settings import Settings, load_settings
from pipeline.task import Task
from pipeline.upkeep import Upkeep
from tests import zoo
from tests.harness import until

from .helpers import grant, ids_of, push

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


def lag_of(upkeep: Upkeep) -> int:
    found: list[int] = []

    def answered() -> bool:
        lag = upkeep.lag(PARTITIONS)
        found.extend([] if lag is None else [lag])
        return bool(found)

    until(answered, "the lag")
    return found[0]


def until_trimmed(upkeep: Upkeep, of: Iterable[int], client: redis.Redis, wanted: list[int]) -> None:
    def trimmed() -> bool:
        upkeep.trim(of)
        return lengths(client) == wanted

    until(trimmed, f"the logs to be trimmed to {wanted}")


@contextmanager
def silent(server: EmbeddedServer) -> Iterator[None]:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


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
        with silent(own):
            assert [upkeep.lag(PARTITIONS) for _ in range(3)] == [None] * 3
            for _ in range(3):
                upkeep.trim(range(3))
        assert lag_of(upkeep) == 3
        until_trimmed(upkeep, range(3), client, [2, 2, 2])
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
    upkeep = Upkeep(client, settings(trim_every_ms=1, outage_ms=1))
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
    assert lag_of(upkeep) == 0
    for _ in range(20):
        upkeep.trim([0])
        client.ping()
    upkeep.forget()


def test_an_answer_that_does_not_come_is_asked_for_again(own: EmbeddedServer) -> None:
    with connect(own.url, 0.2, busy=True) as client:
        read_all(client)
        upkeep = Upkeep(client, settings(trim_every_ms=1))
        connected(client)
        with silent(own):
            with pytest.raises(BrokerUnavailable, match="timeout"):
                until(lambda: upkeep.lag(PARTITIONS) is not None, "an error")
            with pytest.raises(BrokerUnavailable, match="timeout"):
                until(lambda: upkeep.trim(range(3)) is not None, "an error")
        assert lag_of(upkeep) == 3
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
        with silent(own):
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
