"""Rows that are committed less often than offsets: whatever dies, a replay brings them to where the offset is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline.broker.keys import Keys
from pipeline.broker.retention import trim
from pipeline.consumer import Consumer
from tests import zoo
from tests.harness import WorkerProcess, assert_exact, collect, cut_up, digits, every, make_producer, until, worker

FAST = {"lease_ms": 400, "publish": "chunks"}
LOGS = [Keys("audio", "digits", partition) for partition in range(4)]


def rows_stand(client: redis.Redis) -> list[tuple[bytes, bytes]]:
    """(where the rows stand, where the offset does) of every partition that says so."""
    found = []
    for keys in LOGS:
        groups = {g["name"]: g["last-delivered-id"] for g in client.xinfo_groups(keys.log)}
        if b"digits:rows" in groups:
            found.append((groups[b"digits:rows"], groups[b"digits"]))
    return found


def ids(pair: tuple[bytes, bytes]) -> tuple[list[int], list[int]]:
    one, other = ([int(part) for part in id_.split(b"-")] for id_ in pair)
    return one, other


@pytest.mark.parametrize("every_chunks", [[7], [50, 1], [3, 1000, 2]], ids=str)
def test_workers_killed_while_rows_are_behind(
    url: str, redis_client: redis.Redis, tmp_path: Path, every_chunks: list[int]
) -> None:
    """SIGKILL in mid-stream, four times; each worker has an interval of its own. Every byte is the whole signal's."""
    bundle = zoo.bundle("digits")
    signals = digits(12, words=4)
    path = tmp_path / "digits.onnx"
    path.write_bytes(zoo.ZOO["digits"]())
    rng, behind, replayed = np.random.default_rng(7), 0, 0
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
            k = every_chunks[n % len(every_chunks)]
            with WorkerProcess(url, path, tmp_path, **FAST, row_every_chunks=k, read_entries=16) as process:
                for i in part:
                    producer.push_many(batches[i])
                if n < len(parts) - 1:
                    results(int(rng.integers(40, 80)))
                    process.kill()
                    # What it still published would pass for the next one's, which would be killed before it replays.
                    while left := consumer.read(0):
                        for result in left:
                            found[result.stream].append(result)
                    behind += any(one < other for one, other in map(ids, rows_stand(redis_client)))
                else:
                    while not all(rs and rs[-1].end for rs in found.values()):  # type: ignore[attr-defined]
                        results(1)
                replayed += any(event.get("event") == "replayed" for event in process.events())
    assert behind > 0  # else nothing was tried
    assert replayed >= behind
    assert_exact(bundle, signals, found)  # type: ignore[arg-type]
    sent = {name: sum(name == stream for batch in batches for stream, _, _ in batch) for name in signals}
    assert {name: len(results) for name, results in found.items()} == sent


def test_rows_are_written_once_in_so_many_chunks(url: str, redis_client: redis.Redis) -> None:
    """Of a stream of 100 chunks, each committed by itself: a row a chunk, or one in ten; none is left behind."""
    bundle = zoo.bundle("digits")
    (signal,) = digits(1, words=3).values()
    written = {}
    for n, k in enumerate((1, 10)):
        name, step = f"stream-{n}", 160
        with worker(url, bundle, **FAST, row_every_chunks=k), make_producer(url, bundle) as producer:
            consumer = Consumer("audio", "digits", url=url, start="now")
            with consumer:
                before = redis_client.info("commandstats").get("cmdstat_set", {"calls": 0})["calls"]
                for i in range(100):
                    producer.push(name, signal[i * step : (i + 1) * step])
                    while not consumer.read(5):
                        pass
                calls = redis_client.info("commandstats")["cmdstat_set"]["calls"] - before
                written[k] = calls - 100  # of each push, its stand
        assert all(rows == offset for rows, offset in rows_stand(redis_client))
    assert written[1] >= 100
    assert 10 <= written[10] <= 25


def test_a_worker_that_stops_leaves_nothing_to_replay(url: str, redis_client: redis.Redis) -> None:
    bundle = zoo.bundle("digits")
    signals = digits(6, words=2)
    batches = list(cut_up(bundle, signals, every(20)))
    with make_producer(url, bundle) as producer, Consumer("audio", "digits", url=url, start="beginning") as consumer:
        seen = {name: [] for name in signals}  # type: ignore[var-annotated]
        with worker(url, bundle, **FAST, row_every_chunks=1000):
            for batch in batches[: len(batches) // 2]:
                producer.push_many(batch)
            until(lambda: any(one < other for one, other in map(ids, rows_stand(redis_client))), "rows behind")
        stand = rows_stand(redis_client)
        assert stand
        assert all(rows == offset for rows, offset in stand)
        for batch in batches[len(batches) // 2 :]:
            producer.push_many(batch)
        with worker(url, bundle, **FAST):
            for name, results in collect(consumer, list(signals)).items():
                seen[name] += results
    assert_exact(bundle, signals, seen)


def test_chunks_that_rows_lack_are_not_trimmed(url: str, redis_client: redis.Redis, tmp_path: Path) -> None:
    """Read, published, beyond every retention: and yet a replay needs them. Producers are not held back by them."""
    bundle = zoo.bundle("digits")
    signals = digits(6, words=3)
    path = tmp_path / "digits.onnx"
    path.write_bytes(zoo.ZOO["digits"]())
    batches = list(cut_up(bundle, signals, every(20)))
    half = len(batches) // 2
    with make_producer(url, bundle) as producer, Consumer("audio", "digits", url=url, start="beginning") as consumer:
        with WorkerProcess(url, path, tmp_path, **FAST, row_every_chunks=1000) as process:
            for batch in batches[:half]:
                producer.push_many(batch)
            pushed = sum(redis_client.xlen(keys.log) for keys in LOGS)
            until(lambda: sum(redis_client.xlen(keys.out) for keys in LOGS) == pushed, "all results")
            process.kill()
        gone = sum(trim(redis_client, "audio", keys.partition, ["digits"], 0, 86_400_000)[0] for keys in LOGS)
        assert gone < pushed
        assert any(one < other for one, other in map(ids, rows_stand(redis_client)))
        for batch in batches[half:]:
            producer.push_many(batch)
        with worker(url, bundle, **FAST):
            found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)


def test_a_small_belt_stores_what_it_must_forget(url: str) -> None:
    """More streams than the belt has rows, all of them behind."""
    bundle = zoo.bundle("digits")
    signals = digits(40, words=2)
    with make_producer(url, bundle) as producer, Consumer("audio", "digits", url=url, start="beginning") as consumer:
        for batch in cut_up(bundle, signals, every(20)):
            producer.push_many(batch)
        with worker(url, bundle, **FAST, row_every_chunks=1000, belt_rows=16, read_entries=12):
            found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
