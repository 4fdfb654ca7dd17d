"""What could keep a worker from ever getting on: batches longer than its lease, a server that is full or away."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from pipeline import intake
from pipeline.admission import Policy
from pipeline.batcher import Batcher
from pipeline.broker.connection import connect
from pipeline.broker.entries import Raw, fields_of
from pipeline.broker.keys import Keys, log_key
from pipeline.component import Array
from pipeline.consumer import Consumer
from pipeline.logs import logger
from pipeline.manifest import InputSpec
from pipeline.output import Output
from pipeline.settings import load_settings
from pipeline.task import Task
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, lively, make_producer, random_cut, until, worker


def test_a_batch_that_outlasts_the_lease_is_followed_by_smaller_ones(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog of chunks that take the model longer than the lease: fenced once or twice, then through, exactly."""
    bundle, whole_run = zoo.bundle("sensor"), Batcher.run_joined
    batches_s = []

    def slow(self: Batcher, rows: Array, fresh: Array, sizes: Array, ends: Array) -> list[Output]:
        batches_s.append(0.02 * len(sizes))
        time.sleep(batches_s[-1])
        return whole_run(self, rows, fresh, sizes, ends)

    signals = lively(bundle, 8)
    with make_producer(url, bundle) as producer:
        batches = list(cut_up(bundle, signals, random_cut))
        for batch in batches:
            producer.push_many(batch)
    assert sum(map(len, batches)) * 0.02 > 0.8
    monkeypatch.setattr(Batcher, "run_joined", slow)
    with worker(url, bundle, lease_ms=400), Consumer("audio", "digits", url=url, start="beginning") as consumer:
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    assert max(batches_s) > 0.1


def test_a_read_too_large_for_memory_is_followed_by_smaller_ones(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis bounds a read by entries, and entries may be of any size."""
    bundle = zoo.bundle("sensor")
    signals = {f"s-{i}": zoo.signal(bundle.manifest.input, 4000, seed=i) for i in range(4)}
    sizes = []
    plain_next = intake.Intake.next

    def watched(self: intake.Intake, *args: Any, **options: Any) -> dict[int, list[Raw]]:
        found = plain_next(self, *args, **options)
        sizes.append(sum(len(fields_of(flat)[b"data"]) for of in found.values() for _, flat in of))
        return found

    monkeypatch.setattr(intake.Intake, "next", watched)
    monkeypatch.setattr(intake, "_READ_BYTES", 20_000)
    with make_producer(url, bundle, partitions=1) as producer:
        for batch in cut_up(bundle, signals, lambda *_: 100):  # 2,400 bytes each
            producer.push_many(batch)
    with (
        worker(url, bundle, partitions=1, read_entries=64) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
        assert running.counts["dropped_partitions"] == 0
    assert_exact(bundle, signals, found)
    large = [size for size in sizes if size]
    assert large[0] == 64 * 2400
    assert max(large[1:]) <= 20_000


def test_a_read_is_as_large_as_all_that_was_read() -> None:
    """Also what no chunk holds: inputs given to a bundle that takes none, entries that are rejected, their names."""
    for name in (b"data", b"given", b"nonsense"):
        large = [b"stream", b"a", b"seq", b"0", b"data", b"", name, bytes(8 << 20)]
        swapped = [b"data", bytes(8 << 20), b"seq", b"0", b"stream", b"a"]
        hostile = [bytes(8 << 20), b"", b"seq", b"0", b"data", b""]
        for flat in (large, [bytes(8 << 20), b""], swapped, hostile):
            reads = intake.Intake(connect("redis://localhost:1"), load_settings(read_entries=64), logger())
            found = {0: [(b"1-0", flat)] * 64}
            task = Task(0, 1, InputSpec(sample_rate_hz=8000), Policy(), max_chunk_bytes=16 << 20)
            task.take(found[0])
            reads.size(found, task.size_bytes, 0.001)
            assert reads.entries <= 8


def test_only_after_calm_and_full_batches_more_is_fetched_at_once() -> None:
    """What is fetched while a batch runs cannot be made smaller should that batch take long, or be large."""
    reads = intake.Intake(connect("redis://localhost:1"), load_settings(read_entries=4, lease_ms=1000), logger())
    reads._asked = reads.count(2)  # of two partitions
    full: intake.Found = {0: [(b"1-0", [])] * 2, 1: [(b"1-0", [])]}
    assert not reads.more_waits(full, 1000)  # nothing is known of batches yet
    reads.size(full, 1000, 0.01)
    assert reads.more_waits(full, 1000)
    assert not reads.more_waits({0: [(b"1-0", [])], 1: [(b"1-0", [])]}, 1000)
    assert not reads.more_waits(full, 32 << 20)  # and as much again would be more than a read may hold
    reads.size(full, 1000, 0.2)
    assert not reads.more_waits(full, 1000)
    reads.size(full, 40 << 20, 0.01)
    assert not reads.more_waits(full, 1000)
    reads.close()


def test_a_full_server_is_waited_for_and_trimmed(url: str, redis_client: redis.Redis) -> None:
    """Out of memory beyond the lease: nobody loses a partition, what was read is trimmed, a newcomer can help."""
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 6)
    batches = list(cut_up(bundle, signals, random_cut))
    settings = {"lease_ms": 400, "publish": "chunks", "input_retention_ms": 1, "trim_every_ms": 100, "partitions": 1}
    log, lease = log_key("audio", 0), Keys("audio", "digits", 0).lease
    with (
        make_producer(url, bundle, partitions=1) as producer,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        for batch in batches[:-1]:
            producer.push_many(batch)
        with worker(url, bundle, **{**settings, "trim_every_ms": 60_000}):
            until(lambda: lag(redis_client, log) == 0, "the worker to have read all")
        producer.push_many(batches[-1])
        try:
            redis_client.config_set("maxmemory", "1")
            with worker(url, bundle, **settings) as running:
                until(lambda: redis_client.exists(lease) == 1, "the lease")
                holder = redis_client.get(lease)
                until(lambda: redis_client.xlen(log) == len(batches[-1]) + 1, "what was read to be trimmed")
                over = time.monotonic() + 1.0
                until(lambda: time.monotonic() > over, "more than two leases")
                assert redis_client.get(lease) == holder
                redis_client.config_set("maxmemory", "0")
                found = collect(consumer, list(signals))
                assert running.counts["dropped_partitions"] == 0
        finally:
            redis_client.config_set("maxmemory", "0")
    assert_exact(bundle, signals, found)


def lag(client: redis.Redis, log: str) -> int:
    return next((int(group["lag"]) for group in client.xinfo_groups(log)), -1)


def test_stopping_waits_for_a_commit_until_its_deadline(url: str, redis_client: redis.Redis) -> None:
    """What is not known to be stored is the next owner's to find out: the leases are given back at once."""
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 4)
    leases = [Keys("audio", "digits", p).lease for p in range(4)]
    with make_producer(url, bundle) as producer:
        for batch in cut_up(bundle, signals, random_cut):
            producer.push_many(batch)
    try:
        redis_client.config_set("maxmemory", "1")
        with worker(url, bundle, lease_ms=10_000, drain_ms=500) as running:
            until(lambda: any(owned.task.chunks for owned in [*running.owned.values()]), "a batch")
            began_s = time.monotonic()
        assert 0.5 <= time.monotonic() - began_s < 5
        assert redis_client.exists(*leases) == 0
    finally:
        redis_client.config_set("maxmemory", "0")
    with worker(url, bundle), Consumer("audio", "digits", url=url, start="beginning") as consumer:
        assert_exact(bundle, signals, collect(consumer, list(signals)))
