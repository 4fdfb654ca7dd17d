"""Levels of durability: a server that cannot keep a promise is refused, and the strongest waits for its replica."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import redis

from pipeline.broker.connection import connect
from pipeline.broker.durability import Durability, check_durability, durability
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys, partition_of
from pipeline.consumer import Consumer
from pipeline.errors import BrokerUnavailable, ConfigError
from pipeline.settings import load_settings
from pipeline.worker import Worker
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, lively, make_producer, random_cut, until, worker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def always(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "primary", fsync="always", port=free_port()) as server:
        yield server


def test_what_a_server_is_set_up_for(always: EmbeddedServer) -> None:
    with connect(always.url) as client:
        assert durability(client) == Durability(aof=True, fsync="always", replicas=0)
        assert check_durability(client, "fast") == []
        assert check_durability(client, "durable") == []
        (warning,) = check_durability(client, "replicated")
        assert "no replica is connected" in warning
        client.config_set("appendfsync", "everysec")
        with pytest.raises(ConfigError, match=r"appendonly yes, appendfsync everysec; expected .* always"):
            check_durability(client, "durable")
        client.config_set("appendonly", "no")
        with pytest.raises(ConfigError, match="appendonly no"):
            check_durability(client, "replicated")
        (warning,) = check_durability(client, "fast")
        assert "restart loses everything" in warning


def test_a_server_that_still_loads_is_waited_for(tmp_path: Path) -> None:
    """While it reads its append-only file it says that it keeps none: no reason for a worker to give up for good."""
    plain = {"aof-use-rdb-preamble": "no"}
    with (
        EmbeddedServer(tmp_path, fsync="always", settings=plain) as server,
        connect(server.url) as client,
        client.pipeline(transaction=False) as pipe,
    ):
        for i in range(20_000):  # it answers between a thousand of them
            pipe.set(f"key-{i}", i)
        pipe.execute()
    slow = EmbeddedServer(tmp_path, fsync="always", settings=plain | {"key-load-delay": "50"})  # us
    with ThreadPoolExecutor(1) as aside, closing(slow):
        started = aside.submit(slow.start)
        found = []
        while True:
            try:
                with connect(slow.url) as client:
                    found.append(str(check_durability(client, "durable")))
                break
            except BrokerUnavailable as error:
                found.append(str(error))
        assert found[-1] == "[]"
        assert any("still loading" in line for line in found)
        started.result()


def test_a_user_who_may_not_ask(always: EmbeddedServer) -> None:
    with connect(always.url) as admin:
        admin.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "+@all", "-config")
    with connect(always.url) as client:
        client.execute_command("AUTH", "limited", "any")
        assert durability(client).fsync is None
        (warning,) = check_durability(client, "durable")
        assert "not known" in warning


def test_a_worker_refuses_a_server_that_cannot_keep_its_promise(url: str) -> None:
    with pytest.raises(ConfigError, match="durability 'durable'"):
        Worker(load_settings(url=url, durability="durable"), bundle=zoo.bundle("sensor")).run()


def test_replicated_commits_wait_for_the_replica(always: EmbeddedServer, tmp_path: Path) -> None:
    """Nothing counts as done that the replica lacks: when the primary dies, the replica has every result told."""
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 6)
    batches = list(cut_up(bundle, signals, random_cut))
    half = len(batches) // 2
    with (
        EmbeddedServer(tmp_path / "replica", fsync="always") as second,
        connect(always.url) as primary,
        connect(second.url) as replica,
    ):
        port = primary.config_get("port")["port"]
        replica.execute_command("REPLICAOF", "127.0.0.1", port)
        until(lambda: durability(primary).replicas == 1, "the replica")
        with (
            make_producer(always.url, bundle) as producer,
            Consumer("audio", "digits", url=always.url, start="beginning") as consumer,
            worker(always.url, bundle, durability="replicated", publish="chunks", lease_ms=5000) as running,
        ):
            for batch in batches[:half]:
                producer.push_many(batch)
            until(lambda: counted(running) == sum(map(len, batches[:half])), "the first half to be committed")
            assert offsets(replica) == offsets(primary)  # at this very moment, not a little later
            replica.execute_command("REPLICAOF", "NO", "ONE")
            for batch in batches[half:]:
                producer.push_many(batch)
            until(lambda: stored(primary) > counted(running), "a commit that waits for its replica")
            told = counted(running)
            replica.execute_command("REPLICAOF", "127.0.0.1", port)
            found = collect(consumer, list(signals))
            until(lambda: counted(running) == sum(map(len, batches)), "all to be committed")
            assert told < counted(running)
            assert running.counts["dropped_partitions"] == 0
    assert_exact(bundle, signals, found)


def counted(running: Worker) -> int:
    return running.counts["chunks"]


def stored(client: redis.Redis) -> int:
    return sum(client.xlen(Keys("audio", "digits", p).out) for p in range(4))


def offsets(client: redis.Redis) -> list[object]:
    logs = [Keys("audio", "digits", p).log for p in sorted({partition_of(f"s-{i}", 4) for i in range(6)})]
    return [[info["last-delivered-id"] for info in client.xinfo_groups(log)] for log in logs]
