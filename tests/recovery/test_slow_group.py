"""A group whose worker was away for longer than the log waited for it: what it finds when it comes back."""

from __future__ import annotations

import json

import redis

from pipeline.broker.keys import log_key, partition_of
from pipeline.broker.retention import trim
from pipeline.consumer import Consumer
from tests import zoo
from tests.harness import collect, lively, make_producer, spoken, until, whole, worker


def test_what_was_trimmed_unread_is_a_gap_and_the_stream_starts_afresh_behind_it(
    url: str, redis_client: redis.Redis
) -> None:
    bundle = zoo.bundle("sensor")
    (signal,) = lively(bundle, 1, blocks=90).values()
    parts = [signal[: len(signal) // 3], signal[len(signal) // 3 : len(signal) // 2], signal[len(signal) // 2 :]]
    partition = partition_of("s", 4)
    settings = {"group": "slow", "publish": "chunks", "trim_every_ms": 3_600_000}
    with make_producer(url, bundle) as producer, Consumer("audio", "slow", url=url, start="beginning") as consumer:
        with worker(url, bundle, **settings):
            seqs = [producer.push("s", parts[0])]
            (first,) = consumer.read(10)
        seqs.append(producer.push("s", parts[1]))
        before_ms = redis_client.time()
        until(lambda: redis_client.time()[1] // 1000 != before_ms[1] // 1000, "the next millisecond")
        assert trim(redis_client, "audio", partition, [], 0, 0, 0) == (2, 0)
        seqs.append(producer.push("s", parts[2], end=True))
        (info,) = redis_client.xinfo_groups(log_key("audio", partition))
        assert info["lag"] == 1
        with worker(url, bundle, **settings):
            found = collect(consumer, ["s"])["s"]
        (info,) = redis_client.xinfo_groups(log_key("audio", partition))
        assert info["lag"] == 0
    assert first.notes == []
    assert [result.seq for result in found] == [seqs[2]]
    assert found[0].notes == [{"kind": "gap", "expected_seq": seqs[1], "got_seq": seqs[2]}]
    assert spoken(found) == whole(bundle, parts[2])
    assert json.loads(spoken(found)[0]) or spoken(found)[1]
