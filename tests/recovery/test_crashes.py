"""Workers, servers and connections die; what streams yield does not change by a byte."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys
from pipeline.consumer import Consumer
from pipeline.errors import BrokerUnavailable
from tests import zoo
from tests.harness import (
    WorkerProcess,
    assert_exact,
    collect,
    cut_up,
    digits,
    every,
    lively,
    make_producer,
    random_cut,
    until,
    worker,
)
from tests.redis.proxy import Proxy

FAST_LEASE = {"lease_ms": 400, "publish": "chunks"}


@pytest.fixture
def bundle_file(tmp_path: Path) -> Path:
    path = tmp_path / "audio.onnx"
    path.write_bytes(zoo.ZOO["audio"]())
    return path


def test_a_worker_killed_in_mid_stream(url: str, tmp_path: Path) -> None:
    """SIGKILL, again and again, at whatever point it is; a worker started after it goes on byte for byte."""
    bundle = zoo.bundle("digits")
    signals = digits(12, words=4)
    path = tmp_path / "digits.onnx"
    path.write_bytes(zoo.ZOO["digits"]())
    rng = np.random.default_rng(7)
    with make_producer(url, bundle) as producer, Consumer("audio", "digits", url=url, start="beginning") as consumer:
        batches = list(cut_up(bundle, signals, every(20)))
        found: dict[str, list[object]] = {name: [] for name in signals}

        def results(at_least: int) -> None:
            seen = 0
            while seen < at_least:
                for result in consumer.read(30):
                    found[result.stream].append(result)
                    seen += 1

        parts = np.array_split(np.arange(len(batches)), 5)
        for n, part in enumerate(parts):
            with WorkerProcess(url, path, tmp_path, **FAST_LEASE) as process:
                for i in part:
                    producer.push_many(batches[i])
                if n < len(parts) - 1:
                    results(int(rng.integers(1, 30)))  # somewhere in the middle of its work
                    process.kill()
                else:
                    while not all(rs and rs[-1].end for rs in found.values()):  # type: ignore[attr-defined]
                        results(1)
    assert_exact(bundle, signals, found)  # type: ignore[arg-type]
    sent = {name: sum(name == stream for batch in batches for stream, _, _ in batch) for name in signals}
    assert {name: len(results) for name, results in found.items()} == sent


def test_a_frozen_worker_is_fenced_and_leaves_no_trace(url: str, tmp_path: Path, bundle_file: Path) -> None:
    """SIGSTOP beyond the lease: another takes over; woken, the first cannot commit what it had in hand."""
    bundle = zoo.bundle("audio")
    signals = lively(bundle, 10)
    batches = list(cut_up(bundle, signals, random_cut))
    half = len(batches) // 2
    with (
        make_producer(url, bundle) as producer,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
        WorkerProcess(url, bundle_file, tmp_path, **FAST_LEASE) as first,
    ):
        for batch in batches[:half]:
            producer.push_many(batch)
        found = {result.stream: [result] for result in consumer.read(30)}
        first.send(signal.SIGSTOP)
        for batch in batches[half:]:
            producer.push_many(batch)
        with WorkerProcess(url, bundle_file, tmp_path, **FAST_LEASE) as second:
            second.wait_for("ready")
            first.send(signal.SIGCONT)
            first.wait_for("partition_dropped")
            rest = collect(consumer, [n for n in signals if not (n in found and found[n][-1].end)])
    with Consumer("audio", "digits", url=url, start="beginning") as again:
        assert_exact(bundle, signals, collect(again, list(signals)))
    assert rest


def test_lost_replies_of_commits(url: str, server: EmbeddedServer, tmp_path: Path) -> None:
    """The server executed, the reply was lost: the same commit again is answered as a duplicate."""
    bundle = zoo.bundle("audio")
    signals = lively(bundle, 8)
    with Proxy(str(server.socket_path), str(tmp_path / "proxy.sock")) as proxy:
        with (
            make_producer(url, bundle) as producer,
            Consumer("audio", "digits", url=url, start="beginning") as consumer,
            worker(proxy.url, bundle, publish="chunks"),
        ):
            for n, batch in enumerate(cut_up(bundle, signals, random_cut)):
                producer.push_many(batch)
                if n % 5 == 0:
                    proxy.lose_reply()
            found = collect(consumer, list(signals))
        assert proxy.lost.is_set()
    assert_exact(bundle, signals, found)


def test_a_producer_whose_replies_are_lost(url: str, server: EmbeddedServer, tmp_path: Path) -> None:
    """It sends again under the same seq; what was stored twice is run once."""
    bundle = zoo.bundle("audio")
    signals = lively(bundle, 8)
    with (
        Proxy(str(server.socket_path), str(tmp_path / "proxy.sock")) as proxy,
        make_producer(proxy.url, bundle) as producer,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
        worker(url, bundle, publish="chunks") as running,
    ):
        for n, batch in enumerate(cut_up(bundle, signals, random_cut)):
            if n % 5 == 0:
                proxy.lose_reply()
            producer.push_many(batch)
        found = collect(consumer, list(signals))
        assert producer.resent > 0
    assert running.counts["duplicates"] > 0
    assert_exact(bundle, signals, found)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "own", fsync="always") as server:
        yield server


def test_a_server_killed_and_restarted(own_server: EmbeddedServer) -> None:
    """Nothing acknowledged is lost; workers and producers wait and go on."""
    bundle = zoo.bundle("audio")
    signals = lively(bundle, 8)
    url, data_dir = own_server.url, own_server.data_dir
    batches = list(cut_up(bundle, signals, random_cut))
    third = len(batches) // 3
    server = own_server
    with worker(url, bundle, publish="chunks", lease_ms=2000), make_producer(url, bundle) as producer:
        for n, batch in enumerate(batches):
            if n in (third, 2 * third):
                os.kill(server.pid, signal.SIGKILL)
                with pytest.raises(BrokerUnavailable):
                    make_producer(url, bundle)
                server.close()
                server = EmbeddedServer(data_dir, fsync="always")
                server.start()
            producer.push_many(batch)
        with Consumer("audio", "digits", url=url, start="beginning") as consumer:
            found = collect(consumer, list(signals))
    server.close()
    assert_exact(bundle, signals, found)


def test_sigterm_gives_the_partitions_back_at_once(url: str, tmp_path: Path, bundle_file: Path) -> None:
    with WorkerProcess(url, bundle_file, tmp_path, lease_ms=60_000) as process, connect(url) as client:
        process.wait_for("ready")
        leases = [Keys("audio", "digits", p).lease for p in range(4)]
        assert client.exists(*leases) == 4
        process.send(signal.SIGTERM)
        assert process.process.wait(10) == 0
        assert client.exists(*leases) == 0
        assert [line["event"] for line in process.events()][-1] == "stopped"


def test_two_workers_share_and_take_over(url: str, tmp_path: Path, bundle_file: Path) -> None:
    """What a killed worker held is taken by the one that is left, within the lease and a second."""
    with (
        WorkerProcess(url, bundle_file, tmp_path, lease_ms=500) as first,
        connect(url) as client,
    ):
        first.wait_for("ready")
        with WorkerProcess(url, bundle_file, tmp_path, lease_ms=500) as second:
            second.wait_for("started")
            first.kill()
            until(lambda: len(owners(client)) == 4 and set(owners(client)) <= {second_owner(second)}, "a take-over")


def owners(client: redis.Redis) -> list[str]:
    held = [client.get(Keys("audio", "digits", p).lease) for p in range(4)]
    return [value.decode().split(" ", 1)[1] for value in held if value]


def second_owner(process: WorkerProcess) -> str:
    return str(next(line["owner"] for line in process.events() if line["event"] == "started"))


def test_state_is_on_disk_and_nowhere_else(url: str, redis_client: redis.Redis) -> None:
    """A worker that starts on a stream's row reads one row, not its history: the log may be gone."""
    bundle = zoo.bundle("audio")
    signals = lively(bundle, 3)
    batches = list(cut_up(bundle, signals, every(20)))
    half = len(batches) // 2
    with make_producer(url, bundle) as producer, Consumer("audio", "digits", url=url, start="beginning") as consumer:
        found: dict[str, list[object]] = {name: [] for name in signals}
        for part in (batches[:half], batches[half:]):
            sent = 0
            for batch in part:
                producer.push_many(batch)
                sent += len(batch)
            with worker(url, bundle, publish="chunks"):
                while sent:
                    for result in consumer.read(30):
                        found[result.stream].append(result)
                        sent -= 1
            for p in range(4):
                redis_client.xtrim(Keys("audio", "digits", p).log, maxlen=0, approximate=False)
    assert_exact(bundle, signals, found)  # type: ignore[arg-type]
