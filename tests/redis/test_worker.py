"""What a worker leaves in Redis, besides results: offsets that dashboards can read, rows, trimmed logs."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline import status
from pipeline.belt import RowLayout
from pipeline.broker.connection import connect
from pipeline.broker.keys import Keys, partition_of
from pipeline.broker.partition import lags
from pipeline.broker.reader import read
from pipeline.consumer import Consumer
from pipeline.errors import ConfigError
from pipeline.settings import load_settings
from pipeline.worker import Worker
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, digits, every, lively, make_producer, random_cut, until, worker

PARTITIONS = range(4)


def group(client: redis.Redis, partition: int) -> dict[str, object]:
    (info,) = client.xinfo_groups(Keys("audio", "digits", partition).log)
    return dict(info)


def test_the_groups_offset_is_the_offset(url: str, redis_client: redis.Redis) -> None:
    """XINFO GROUPS shows the true lag: while nobody works, all; afterwards none; and no pending list at all."""
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 20)
    with make_producer(url, bundle) as producer:
        with worker(url, bundle):
            until(lambda: redis_client.exists(*[Keys("audio", "digits", p).lease for p in PARTITIONS]) == 4, "leases")
        sent = Counter[int]()
        for batch in cut_up(bundle, signals, random_cut):
            producer.push_many(batch)
            sent.update(partition_of(name, 4) for name, _, _ in batch)
    assert {p: group(redis_client, p)["lag"] for p in PARTITIONS} == {p: sent[p] for p in PARTITIONS}
    with (
        worker(url, bundle, read_entries=16, belt_rows=32) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        collect(consumer, list(signals))
    for p in PARTITIONS:
        last = redis_client.xinfo_stream(Keys("audio", "digits", p).log)["last-generated-id"]
        found = group(redis_client, p)
        assert (found["lag"], found["entries-read"], found["pending"]) == (0, sent[p], 0)
        assert found["last-delivered-id"] == last
    assert running.counts["dropped_partitions"] == 0  # its offsets were right: nothing was read twice


def test_results_are_readable_in_redis_cli(url: str, redis_client: redis.Redis) -> None:
    """Full field names, events as JSON, each under the id of the chunk that caused it."""
    bundle = zoo.bundle("digits")
    signals = digits(3)
    with (
        make_producer(url, bundle) as producer,
        worker(url, bundle),
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        for batch in cut_up(bundle, signals, every(100)):
            producer.push_many(batch)
        collect(consumer, list(signals))
    words = 0
    for p in PARTITIONS:
        keys = Keys("audio", "digits", p)
        chunks = dict(redis_client.xrange(keys.log))
        for id_, fields in redis_client.xrange(keys.out):
            assert fields[b"stream"] == chunks[id_][b"stream"]
            assert fields[b"seq"] == chunks[id_][b"seq"]
            for event in json.loads(fields[b"events"]):
                assert set(event) == {"label", "start_s", "end_s", "score"}
                words += 1
    assert words >= 6


def test_rows_are_whole_and_tombstones_small(url: str, redis_client: redis.Redis) -> None:
    bundle = zoo.bundle("audio")
    with make_producer(url, bundle) as producer, worker(url, bundle, publish="chunks") as running:
        producer.push("open", np.ones(3000, np.int16))
        producer.push("ended", np.ones(3000, np.int16), end=True)
        rows = {name: Keys("audio", "digits", partition_of(name, 4)).row_prefix + name for name in ("open", "ended")}
        until(lambda: redis_client.exists(*rows.values()) == 2, "rows")
        layout: RowLayout = running._belt.layout
        live, ended = (redis_client.get(rows[name]) for name in ("open", "ended"))
    assert (len(live), len(ended)) == (layout.row_bytes, layout.header_bytes)
    assert live[:16] == ended[:16] == bundle.fingerprint
    row = np.frombuffer(layout.parse(live), layout.dtype)[0]
    assert int(row["samples"]) == 3000
    assert int(row["frames"]) == 3000 // 77
    assert int(row["rest_samples"]) == 3000 % 77


def test_logs_are_trimmed_behind_the_slowest_group(url: str, redis_client: redis.Redis) -> None:
    """Two groups on one topic, each at its own pace: what the slower one has still to read stays.

    (So does the entry at its offset: Redis counts the lag from it.)
    """
    bundle = zoo.bundle("sensor")
    log = Keys("audio", "fast", 0).log
    retention = {"partitions": 1, "input_retention_ms": 1, "trim_every_ms": 1}
    with make_producer(url, bundle, partitions=1) as producer:
        for _ in range(5):
            producer.push("s", np.ones((10, 6), np.float32))
        with worker(url, bundle, group="slow", **retention):
            until(lambda: lag(redis_client, log, b"slow") == 0, "the slow group")
        for _ in range(50):
            producer.push("s", np.ones((10, 6), np.float32))
        producer.end("s")
        with worker(url, bundle, group="fast", **retention), Consumer("audio", "fast", url=url) as consumer:
            until(lambda: lag(redis_client, log, b"fast") == 0, "the fast group")
            until(lambda: redis_client.xlen(log) == 52, "the log to be trimmed to what the slow group needs")
            assert lag(redis_client, log, b"slow") == 51
        with (
            worker(url, bundle, group="slow", **retention),
            Consumer("audio", "slow", url=url, start="beginning") as consumer,
        ):
            collect(consumer, ["s"])
            until(lambda: redis_client.xlen(log) == 1, "the log to be trimmed")


def lag(client: redis.Redis, log: str, name: bytes) -> int:
    """Of a group; -1 while it does not exist."""
    return next((int(g["lag"]) for g in client.xinfo_groups(log) if g["name"] == name), -1)


def test_a_server_that_lost_its_data_is_worked_on(url: str, redis_client: redis.Redis, tmp_path: Path) -> None:
    """Its logs are gone, with their groups and leases: no reason to stop. What comes then is answered."""
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 6)
    keys = [Keys("audio", "digits", p) for p in PARTITIONS]
    with worker(url, bundle, lease_ms=5000, status_dir=str(tmp_path)):
        until(lambda: redis_client.exists(*[each.lease for each in keys]) == 4, "leases")
        redis_client.flushall()
        lost_s = time.time()
        assert lags(redis_client, keys) == [0, 0, 0, 0]
        until(lambda: any(s.at_s > lost_s for s in status.read(tmp_path, url, "audio", "digits")), "a report")
        until(lambda: redis_client.exists(*[each.lease for each in keys]) == 4, "the leases anew")
        with (
            make_producer(url, bundle) as producer,
            Consumer("audio", "digits", url=url, start="beginning") as consumer,
        ):
            for batch in cut_up(bundle, signals, random_cut):
                producer.push_many(batch)
            found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)


def test_a_belt_too_small_for_one_read_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="belt_rows is 4;"):
        Worker(load_settings(url=url, belt_rows=4, read_entries=16), bundle=zoo.bundle("sensor")).run()


def test_a_worker_of_a_name_is_told_what_it_wants() -> None:
    with pytest.raises(ConfigError, match=r"given str \('digits'\); expected settings: Worker\(load_settings\("):
        Worker("digits")  # type: ignore[arg-type]


def test_what_comes_together_is_one_batch(url: str, redis_client: redis.Redis) -> None:
    """A read that waited is answered with the first entry that comes: what came with it is read as well."""
    with connect(url) as client, ThreadPoolExecutor(1) as pool:
        found = pool.submit(read, client, "audio", dict.fromkeys(PARTITIONS, b"0-0"), 64, 5_000, enough=64)
        until(lambda: redis_client.info("clients")["blocked_clients"] == 1, "the read to wait")
        with redis_client.pipeline(transaction=False) as pipe:
            for partition in (2, 2, 0, 3, 1):
                pipe.xadd(Keys("audio", "digits", partition).log, {"stream": "s"})
            pipe.execute()
        assert {partition: len(entries) for partition, entries in found.result().items()} == {0: 1, 1: 1, 2: 2, 3: 1}


def test_two_groups_see_every_stream(url: str) -> None:
    """Another bundle on the same topic, beside the first: each has its own rows, offsets and results."""
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 4)
    with make_producer(url, bundle) as producer, worker(url, bundle), worker(url, bundle, group="second"):
        for batch in cut_up(bundle, signals, random_cut):
            producer.push_many(batch)
        found = []
        for name in ("digits", "second"):
            with Consumer("audio", name, url=url, start="beginning") as consumer:
                found.append(collect(consumer, list(signals)))
    for name in signals:
        one, two = (b"".join(r.scores.tobytes() for r in f[name] if r.scores is not None) for f in found)
        assert one == two
