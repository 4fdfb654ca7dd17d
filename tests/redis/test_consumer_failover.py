"""Consumers across a failover, blocking and asyncio: nothing skipped that the new primary has, nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import redis

from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys
from pipeline.consumer import AsyncConsumer, Consumer
from pipeline.errors import BrokerUnavailable
from tests import zoo
from tests.harness import make_producer, until

from .pair import Pair, in_step


def publish(client: redis.Redis, *numbers: tuple[int, int], partition: int = 0) -> None:
    """Results as a worker would, (id, seq) each."""
    out = Keys("audio", "digits", partition).out
    for number, seq in numbers:
        client.xadd(out, {"stream": "s", "seq": str(seq), "events": "[]"}, id=f"{number}-0")


def make_topic(url: str, partitions: int = 1) -> None:
    make_producer(url, zoo.bundle("sensor"), partitions=partitions).close()


def torn(pair: Pair, partitions: int = 1) -> None:
    """Two primaries that have results 1 to 5 in common; the first one has 6 to 8, too."""
    make_topic(pair.url, partitions)
    one, two = pair.clients
    for partition in range(partitions):
        publish(one, *((n, n) for n in range(1, 6)), partition=partition)
    until(lambda: one.wait(1, 100) == 1, "the replica")
    two.execute_command("REPLICAOF", "NO", "ONE")
    for partition in range(partitions):
        publish(one, (6, 6), (7, 7), (8, 8), partition=partition)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_results_that_another_history_lacks_are_not_skipped(pair: Pair, asynchronous: bool) -> None:
    """Beyond the last id that was read nothing may come: what the new primary has is lower, the same, or other."""
    bundle = zoo.bundle("sensor")
    make_producer(pair.url, bundle, partitions=1).close()  # the topic
    one, two = pair.clients
    out = Keys("audio", "digits", 0).out

    def publish(client: redis.Redis, *numbers: tuple[int, int]) -> None:
        for number, seq in numbers:
            client.xadd(out, {"stream": "s", "seq": str(seq), "events": "[]"}, id=f"{number}-0")

    publish(one, *((n, n) for n in range(1, 6)))
    until(lambda: one.wait(1, 100) == 1, "the replica")
    two.execute_command("REPLICAOF", "NO", "ONE")
    publish(one, (6, 6), (7, 7), (8, 8))
    with Read(pair.url, asynchronous) as read:
        assert read(8) == list(range(1, 9))
        publish(two, (6, 60), (7, 7))  # of 8 there is nothing yet
        pair.proxy.lead_to(str(pair.servers[1].socket_path))
        pair.proxy.cut_all()
        assert read(1) == [60]
        publish(two, (8, 8), (9, 9))
        assert read(1) == [9]
        assert read.consumer.offsets == {0: b"9-0"}


class Read:
    """A consumer of either form: the numbers of the next results, through whatever cuts it off."""

    def __init__(self, url: str, asynchronous: bool) -> None:
        self._runner = asyncio.Runner()
        self.consumer: Any = (AsyncConsumer if asynchronous else Consumer)(
            "audio", "digits", url=url, start="beginning"
        )

    def __call__(self, count: int) -> list[int]:
        found: list[int] = []

        def enough() -> bool:
            with contextlib.suppress(BrokerUnavailable):
                found.extend(result.seq for result in self._now(self.consumer.read(timeout_s=0.2)))
            return len(found) >= count

        until(enough, f"{count} results")
        return found

    def _now(self, made: Any) -> Any:
        return self._runner.run(made) if inspect.isawaitable(made) else made

    def __enter__(self) -> Read:
        return self

    def __exit__(self, *_: object) -> None:
        self._now(self.consumer.close())
        self._runner.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_primary_that_gets_other_data_under_a_connection_that_stays(pair: Pair, asynchronous: bool) -> None:
    """Reading is no error on a replica: that it is one now is asked for."""
    torn(pair)
    one, two = pair.clients
    with Read(pair.url, asynchronous) as read:
        assert read(8) == list(range(1, 9))
        publish(two, (6, 60), (7, 7))
        one.execute_command("REPLICAOF", "127.0.0.1", pair.ports[1])  # nobody reads meanwhile
        until(lambda: in_step(one), "the old primary to follow")
        publish(two, (8, 8), (9, 9))
        until(lambda: two.wait(1, 100) == 1, "the old primary to have it")
        assert read(2) == [60, 9]


def test_offsets_in_the_midst_of_what_was_read_of_another_history(pair: Pair) -> None:
    """Of a partition that had no turn yet they are those from before what it will hand out."""
    torn(pair, partitions=2)
    _, two = pair.clients
    with Read(pair.url, False) as read:
        assert sorted(read(16)) == sorted([*range(1, 9)] * 2)
        for partition in (0, 1):
            publish(two, (6, 60 + partition), partition=partition)
        pair.proxy.lead_to(str(pair.servers[1].socket_path))
        pair.proxy.cut_all()
        found = []

        def first() -> bool:
            with contextlib.suppress(BrokerUnavailable):
                found.append(next(iter(read.consumer)))
            return bool(found)

        until(first, "a result")
        saved = read.consumer.offsets
    with Consumer("audio", "digits", url=pair.url, start=saved) as later:
        rest = [result.seq for result in later.read(0.5) if result.seq >= 60]
    assert sorted([found[0].seq, *rest]) == [60, 61]


def test_what_was_read_before_a_restart_is_no_empty_answer(tmp_path: Path) -> None:
    """A consumer that does not wait gets what is stored behind it."""
    with EmbeddedServer(tmp_path, fsync="always") as server, connect(server.url) as client:
        make_topic(server.url)
        publish(client, *((n, n) for n in range(1, 1001)))
        with Read(server.url, False) as read:
            assert read(1000) == list(range(1, 1001))
            server.close()
            server.start()
            with connect(server.url) as again:
                publish(again, (2000, 2000))
            found = []
            with contextlib.suppress(BrokerUnavailable):  # the connection may be found broken
                found = read.consumer.read(0)
            assert [result.seq for result in found or read.consumer.read(0)] == [2000]
