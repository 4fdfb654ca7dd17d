"""Rows that are behind while something breaks: a batch, a replay, a failover, a shutdown. No chunk is taken for known
that no row holds, and no row is stored that holds what was never published."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import redis

from pipeline import task as tasks
from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys, workers_key
from pipeline.consumer import Consumer
from pipeline.producer import Producer
from pipeline.settings import load_settings
from pipeline.worker import Worker
from tests import zoo
from tests.harness import WorkerProcess, assert_exact, collect, cut_up, digits, every, make_producer, until, worker
from tests.redis.proxy import Proxy
from tests.redis.test_replicas import follow, free_port

BUNDLE = zoo.bundle("digits")
LOGS = [Keys("audio", "digits", partition) for partition in range(4)]
FAST: dict[str, Any] = {"lease_ms": 400, "publish": "chunks"}
AT_ONCE = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
LATE: dict[str, Any] = {**FAST, "row_every_chunks": 1000}


@pytest.fixture
def bundle_file(tmp_path: Path) -> Path:
    path = tmp_path / "digits.onnx"
    path.write_bytes(zoo.ZOO["digits"]())
    return path


@pytest.fixture
def proxy(server: EmbeddedServer, tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(str(server.socket_path), str(tmp_path / "proxy.sock")) as proxy:
        yield proxy


@contextmanager
def clients(url: str, **options: object) -> Iterator[tuple[Producer, Consumer]]:
    with (
        make_producer(url, BUNDLE, max_backlog=0, **options) as producer,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        yield producer, consumer


def in_two_parts(count: int, *, words: int, seed: int = 0) -> tuple[dict[str, np.ndarray], list[Any], list[Any]]:
    """Real speech, and its chunks in rounds: those of the first half, and the others."""
    signals = digits(count, words=words, seed=seed)
    batches = list(cut_up(BUNDLE, signals, every(20)))
    half = len(batches) // 2
    return signals, batches[:half], batches[half:]


def entries(client: redis.Redis, kind: str) -> int:
    return sum(client.xlen(getattr(keys, kind)) for keys in LOGS)


def caught_up(client: redis.Redis) -> bool:
    """Whether the rows of every partition stand where its offset does."""
    for keys in LOGS:
        stand = {group["name"]: group["last-delivered-id"] for group in client.xinfo_groups(keys.log)}
        if stand.get(b"digits:rows", stand[b"digits"]) != stand[b"digits"]:
            return False
    return True


def leave_rows_behind(
    url: str, client: redis.Redis, producer: Producer, batches: list[Any], path: Path, folder: Path
) -> None:
    """A worker that publishes all of these, and is killed before it has stored a row."""
    with WorkerProcess(url, path, folder, **LATE) as process:
        for batch in batches:
            producer.push_many(batch)
        until(lambda: entries(client, "out") == entries(client, "log"), "results of all")
        process.kill()
    assert not caught_up(client)


def test_a_batch_that_breaks_off_stores_no_row(
    url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, Ctrl-C twice: rows on the belt hold chunks that nobody has published, and stay there."""
    signals = digits(8, words=4)
    with clients(url) as (producer, consumer):
        for batch in cut_up(BUNDLE, signals, every(20)):
            producer.push_many(batch)
        left, effects = [3], tasks.effects

        def breaks(*args: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise MemoryError("in the midst of a batch")
            return effects(*args)

        with monkeypatch.context() as broken:
            broken.setattr(tasks, "effects", breaks)
            with pytest.raises(MemoryError):
                Worker(load_settings(url=url, **LATE), bundle=BUNDLE).run()
        assert 0 < entries(redis_client, "out") < entries(redis_client, "log")
        with worker(url, BUNDLE, **FAST) as heir:
            assert_exact(BUNDLE, signals, collect(consumer, list(signals)))
        assert heir.counts["duplicates"] == 0


@pytest.mark.parametrize("partition", [1, 3])
def test_a_replay_that_loses_an_answer_replays_all_the_same(
    url: str, redis_client: redis.Redis, proxy: Proxy, bundle_file: Path, tmp_path: Path, partition: int
) -> None:
    """The rows of one partition do not come: nothing of another is counted as replayed that was not stored."""
    signals, before, after = in_two_parts(12, words=3)
    with clients(url) as (producer, consumer):
        leave_rows_behind(url, redis_client, producer, before, bundle_file, tmp_path)
        proxy.lose_reply(b"{audio/%d}:digits:row:" % partition)
        with WorkerProcess(proxy.url, bundle_file, tmp_path, **LATE, read_entries=2000) as second:  # all in one batch
            until(lambda: sum(e.get("event") == "replayed" for e in second.events()) >= 4, "all to be replayed")
            second.kill()
        assert proxy.happened
        for batch in after:
            producer.push_many(batch)
        with worker(url, BUNDLE, **FAST):
            assert_exact(BUNDLE, signals, collect(consumer, list(signals)))


def test_a_replay_that_loses_every_lease_goes_on(
    url: str, redis_client: redis.Redis, proxy: Proxy, bundle_file: Path, tmp_path: Path
) -> None:
    """Redis is slow once, in its midst, for longer than the lease."""
    signals, before, after = in_two_parts(6, words=2)
    with clients(url) as (producer, consumer):
        leave_rows_behind(url, redis_client, producer, before, bundle_file, tmp_path)
        proxy.delay(0.8, "reply", b"digits:row:")
        with worker(proxy.url, BUNDLE, **LATE) as second:
            until(lambda: len(second.owned) == 4 and caught_up(redis_client), "all to be replayed")
            assert second.counts["dropped_partitions"] > 0  # else nothing was tried
            for batch in after:
                producer.push_many(batch)
            assert_exact(BUNDLE, signals, collect(consumer, list(signals)))


def test_a_replay_longer_than_the_lease_goes_on_in_parts(
    url: str, redis_client: redis.Redis, bundle_file: Path, tmp_path: Path
) -> None:
    """All that is to be replayed comes in one read, and takes several leases."""
    keys, streams = LOGS[0], [f"s{i}" for i in range(48)]
    with clients(url, partitions=1) as (producer, _):
        with WorkerProcess(url, bundle_file, tmp_path, **{**LATE, "lease_ms": 30_000}) as first:
            for stream in streams:
                producer.push(stream, np.zeros(300_000, np.int16))
            until(lambda: redis_client.xlen(keys.out) == len(streams), "results of all")
            first.kill()
        redis_client.delete(keys.lease, workers_key("audio", "digits"))
        for stream in streams:
            producer.push(stream, np.zeros(800, np.int16))
        with worker(url, BUNDLE, **{**LATE, "lease_ms": 300}) as second:
            until(lambda: redis_client.xlen(keys.out) == 2 * len(streams), "results of what came after the replay")
            assert second.counts["dropped_partitions"] > 0  # else nothing was tried


def test_a_failover_that_loses_rows_alone_is_noticed(tmp_path: Path, bundle_file: Path) -> None:
    """The worker has stored what rows lacked; the replica that takes over has the offset, and not these rows."""
    signals, before, after = in_two_parts(12, words=3)
    port = free_port()
    with (
        EmbeddedServer(tmp_path / "a", fsync="no", port=port, settings=AT_ONCE) as old,
        EmbeddedServer(tmp_path / "b", fsync="no", settings=AT_ONCE) as new,
        Proxy(str(old.socket_path), str(tmp_path / "proxy.sock")) as proxy,
        closing(connect(old.url)) as of_old,
        closing(connect(new.url)) as of_new,
    ):
        follow(of_new, port)
        with clients(proxy.url) as (producer, consumer):
            with WorkerProcess(proxy.url, bundle_file, tmp_path, **{**LATE, "lease_ms": 4000}) as process:
                process.wait_for("ready")
                for batch in before:
                    producer.push_many(batch)
                until(lambda: entries(of_old, "out") == entries(of_old, "log"), "results of all")
                until(lambda: entries(of_new, "out") == entries(of_old, "out"), "the replica to have them")
                of_new.execute_command("REPLICAOF", "NO", "ONE")  # what the old one stores from here on is lost
                assert not caught_up(of_new)
                until(lambda: caught_up(of_old), "the worker to store its rows, in vain")
                proxy.lead_to(str(new.socket_path))
                proxy.cut_all()
                for batch in after[:20]:
                    producer.push_many(batch)
                until(lambda: entries(of_new, "out") == entries(of_new, "log"), "results of these")
                process.kill()
            for batch in after[20:]:
                producer.push_many(batch)
            with worker(new.url, BUNDLE, **FAST):
                assert_exact(BUNDLE, signals, collect(consumer, list(signals)))


@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize("seed", range(2))
def test_told_to_stop_while_redis_is_away_it_leaves_in_time(
    tmp_path: Path, bundle_file: Path, lost: Literal["request", "reply"], seed: int
) -> None:
    """In the midst of a backlog, a commit on its way, be it stored or not: no error of ours."""
    _, before, after = in_two_parts(40, words=3, seed=seed)
    with (
        EmbeddedServer(tmp_path / "redis", fsync="no") as server,
        Proxy(str(server.socket_path), str(tmp_path / "proxy.sock")) as proxy,
        clients(server.url) as (producer, consumer),
    ):
        for batch in before:
            producer.push_many(batch)
        options = {**FAST, "lease_ms": 5000, "drain_ms": 300, "read_entries": 64, "max_batch": 8}
        with WorkerProcess(proxy.url, bundle_file, tmp_path, **options) as process:
            assert consumer.read(timeout_s=30)
            proxy.delay(60.0, lost, b"sb_commit")
            for batch in after:
                producer.push_many(batch)
            until(lambda: bool(proxy.happened), "a commit to be on its way")
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            proxy.cut_all()
            process.wait_for("commit_retried")
            process.send(signal.SIGTERM)
            assert process.process.wait(20) == 0, process.log.read_text()[-800:]
