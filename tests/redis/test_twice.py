"""An entry that says something twice: rejected, shown whole, its neighbours untouched. XADD takes what a dict hides."""

from __future__ import annotations

import redis

from pipeline.broker.dead import dead_letters
from pipeline.broker.keys import log_key
from pipeline.consumer import Consumer
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, lively, make_producer, random_cut, worker

TOPIC, GROUP = "audio", "digits"


def test_a_name_that_stands_twice(url: str, redis_client: redis.Redis) -> None:
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 4, blocks=20)
    entry = ["stream", "twice", "seq", "1", "seq", "2", "data", "", "data", ""]
    with (
        make_producer(url, bundle, partitions=1) as producer,
        Consumer(TOPIC, GROUP, url=url, start="beginning") as consumer,
        worker(url, bundle, topic=TOPIC, group=GROUP),
    ):
        for batch in cut_up(bundle, signals, random_cut):
            producer.push_many(batch)
            redis_client.execute_command("XADD", log_key(TOPIC, 0), "*", *entry)
        producer.end("last")
        found = collect(consumer, [*signals, "last"])
    assert_exact(bundle, signals, found)
    letters = dead_letters(redis_client, TOPIC, GROUP, [0])
    assert letters
    for letter in letters:
        assert letter.fields[b"reason"] == b"unknown_field"
        assert (letter.fields[b"seq"], letter.fields[b"entry.seq (field 3)"]) == (b"1", b"2")
        assert letter.fields[b"entry.data (field 5)"] == b""
