"""Whatever a producer pushes: the documented outcome, and nobody else's stream changes by a byte."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import redis

from pipeline.broker.admin import dead_letters
from pipeline.broker.keys import Keys, log_key, partition_of
from pipeline.bundle import Bundle
from pipeline.consumer import Consumer, Result
from pipeline.errors import ConfigError
from pipeline.settings import load_settings
from pipeline.worker import Worker
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, lively, make_producer, random_cut, spoken, until, whole, worker

TOPIC, GROUP, PARTITIONS = "audio", "digits", 4


def raw(client: redis.Redis, stream: str, id_: str = "*", **fields: object) -> None:
    """An entry as a hostile or broken producer writes it."""
    entry = {"stream": stream, **{name: value for name, value in fields.items() if value is not None}}
    client.xadd(log_key(TOPIC, partition_of(stream, PARTITIONS)), entry, id=id_)  # type: ignore[arg-type]


@pytest.fixture
def bundle() -> Bundle:
    return zoo.bundle("sensor")


@pytest.fixture
def consumer(url: str, bundle: Bundle) -> Iterator[Consumer]:
    make_producer(url, bundle).close()  # creates the topic
    with Consumer(TOPIC, GROUP, url=url, start="beginning") as consumer:
        yield consumer


def data(bundle: Bundle, samples: int, seed: int = 0) -> bytes:
    return bytes(zoo.signal(bundle.manifest.input, samples, seed).tobytes())


BAD: dict[str, tuple[dict[str, object], str]] = {
    "odd bytes": ({"seq": 0, "data": b"123"}, "wrong_size"),
    "int16 instead of float32": ({"seq": 0, "data": b"\0\0" * 5}, "wrong_size"),
    "NaN": ({"seq": 0, "data": np.full(6, np.nan, "<f4").tobytes()}, "not_finite"),
    "10 MB": ({"seq": 0, "data": b"\0" * 10_000_008}, "oversize"),
    "unknown field": ({"seq": 0, "data": b"", "gain": "3"}, "unknown_field"),
    "no data": ({"seq": 0}, "missing_field"),
    "no seq": ({"data": b""}, "missing_field"),
    "seq of letters": ({"seq": "one", "data": b""}, "bad_seq"),
    "end of letters": ({"seq": 0, "data": b"", "end": "true"}, "bad_end"),
}


def test_bad_chunks_among_good_streams(url: str, redis_client: redis.Redis, bundle: Bundle, consumer: Consumer) -> None:
    """Every kind of bad chunk, between the chunks of good streams: dead letters with reasons, good streams exact."""
    signals = lively(bundle, 12)
    bad = iter(BAD.items())
    with worker(url, bundle), make_producer(url, bundle) as producer:
        for batch in cut_up(bundle, signals, random_cut):
            producer.push_many(batch)
            for name, (fields, _) in islice(bad, 1):
                raw(redis_client, f"bad {name}", **fields)
        for name, (fields, _) in bad:
            raw(redis_client, f"bad {name}", **fields)
        redis_client.xadd(log_key(TOPIC, 1), {"garbage": "x"})
        redis_client.xadd(log_key(TOPIC, 2), {"stream": b"\xff", "seq": "0", "data": ""})
        producer.push("last", np.empty((0, 6), np.float32), end=True)
        found = collect(consumer, [*signals, "last"])
        for partition in range(PARTITIONS):  # ends of all partitions, so that all bad chunks have been seen
            name = next(f"end {i}" for i in range(99) if partition_of(f"end {i}", PARTITIONS) == partition)
            producer.end(name)
            collect(consumer, [name])
    assert_exact(bundle, signals, found)
    letters = dead_letters(redis_client, TOPIC, GROUP, range(PARTITIONS))
    named = [letter for letter in letters if letter.fields.get(b"stream", b"").startswith(b"bad ")]
    reasons = {letter.fields[b"stream"].decode(): letter.fields[b"reason"].decode() for letter in named}
    assert reasons == {f"bad {name}": reason for name, (_, reason) in BAD.items()}
    assert sorted(x.fields[b"reason"] for x in letters if x.fields.get(b"stream") in (None, b"\xff")) == [
        b"bad_stream",
        b"unknown_field",
    ]
    sent = next(x for x in letters if x.fields.get(b"stream") == b"bad odd bytes")
    assert sent.fields[b"data"] == b"123"


def notes(results: list[Result]) -> list[list[str]]:
    return [[note["kind"] for note in result.notes] for result in results]


def test_a_rejected_chunk_is_a_gap_unless_it_is_sent_again(
    url: str, redis_client: redis.Redis, bundle: Bundle, consumer: Consumer
) -> None:
    """The stream of a rejected chunk starts afresh after it; sent again in order, nothing is missing."""
    first, second = data(bundle, 40, 1), data(bundle, 40, 2)
    nan = np.full((40, 6), np.nan, "<f4").tobytes()
    for stream, repaired in (("torn", False), ("mended", True)):
        raw(redis_client, stream, seq=0, data=first)
        raw(redis_client, stream, seq=1, data=nan)
        if repaired:
            raw(redis_client, stream, seq=1, data=second)
        raw(redis_client, stream, seq=2, data=second, end=1)
    with worker(url, bundle):
        found = collect(consumer, ["torn", "mended"])
    assert notes(found["torn"]) == [[], ["gap"]]
    assert found["torn"][1].notes == [{"kind": "gap", "expected_seq": 1, "got_seq": 2}]
    one, two = (zoo.signal(bundle.manifest.input, 40, seed) for seed in (1, 2))
    assert spoken(found["torn"][1:]) == whole(bundle, two)
    assert spoken(found["mended"]) == whole(bundle, np.concatenate([one, two, two]))


def test_gap_duplicate_and_a_second_life(
    url: str, redis_client: redis.Redis, bundle: Bundle, consumer: Consumer
) -> None:
    raw(redis_client, "s", seq=5, data=data(bundle, 30, 1))
    for seq in (5, 4, 0):
        raw(redis_client, "s", seq=seq, data=data(bundle, 30, 9))  # resent: dropped whatever they hold
    raw(redis_client, "s", seq=6, data=data(bundle, 30, 2), end=1)
    raw(redis_client, "s", seq=6, data=data(bundle, 30, 2), end=1)  # the last one again: no new stream
    raw(redis_client, "s", seq=7, data=data(bundle, 30, 3), end=1)  # above the end: a new life
    with worker(url, bundle) as running:
        found = collect(consumer, ["s"])["s"]
        while sum(result.end for result in found) < 2:
            found += consumer.read(5)
    assert running.counts["duplicates"] == 4
    assert [result.seq for result in found] == [5, 6, 7]
    assert notes(found) == [[], [], []]
    one, two, three = (zoo.signal(bundle.manifest.input, 30, seed) for seed in (1, 2, 3))
    assert spoken(found[:2]) == whole(bundle, np.concatenate([one, two]))
    assert spoken(found[2:]) == whole(bundle, three)


def test_on_gap_continue(url: str, redis_client: redis.Redis, bundle: Bundle, consumer: Consumer) -> None:
    raw(redis_client, "s", seq=0, data=data(bundle, 30, 1))
    raw(redis_client, "s", seq=9, data=data(bundle, 30, 2), end=1)
    with worker(url, bundle, on_gap="continue"):
        found = collect(consumer, ["s"])["s"]
    assert notes(found) == [[], ["gap"]]
    assert spoken(found) == whole(bundle, np.concatenate([zoo.signal(bundle.manifest.input, 30, s) for s in (1, 2)]))


def test_idle_streams_expire_in_log_time(
    url: str, redis_client: redis.Redis, bundle: Bundle, consumer: Consumer
) -> None:
    """By the ids of chunks alone: a replay hours later decides as the first run did."""
    raw(redis_client, "s", "1000000-0", seq=0, data=data(bundle, 30, 1))
    raw(redis_client, "s", "1001000-0", seq=1, data=data(bundle, 30, 2))  # 1 s later: goes on
    raw(redis_client, "s", "1003001-0", seq=2, data=data(bundle, 30, 3), end=1)  # 2.001 s later: expired
    raw(redis_client, "s", "1005100-0", seq=0, data=data(bundle, 30, 4), end=1)  # the tombstone has expired too
    with worker(url, bundle, idle_ms=2000, tombstone_ms=2000, outage_ms=500):
        found = collect(consumer, ["s"])["s"]
        while sum(result.end for result in found) < 2:
            found += consumer.read(5)
        rows = list(redis_client.keys("*:row:s"))
        ttl = redis_client.pttl(rows[0])
    assert notes(found) == [[], [], ["expired"], []]
    assert found[2].notes == [{"kind": "expired", "idle_ms": 2001}]
    one, two, three, four = (zoo.signal(bundle.manifest.input, 30, seed) for seed in (1, 2, 3, 4))
    assert spoken(found[:2])[1] == whole(bundle, np.concatenate([one, two]))[1]
    assert spoken(found[2:3]) == whole(bundle, three)
    assert spoken(found[3:]) == whole(bundle, four)
    assert len(rows) == 1
    assert 0 < ttl <= 2500


def test_an_outage_is_no_idleness(url: str, redis_client: redis.Redis, bundle: Bundle, consumer: Consumer) -> None:
    """No worker for longer than a stream may be idle: what its chunks say of time counts, not when they are read."""
    settings = {"publish": "chunks", "idle_ms": 200, "tombstone_ms": 200}
    for stream, last in (("goes on", None), ("ended", 1)):
        raw(redis_client, stream, "1000000-0", seq=0, data=data(bundle, 30, 1), end=last)
    seen: list[Result] = []
    with worker(url, bundle, **settings):
        while len(seen) < 2:
            seen += consumer.read(5)
    threading.Event().wait(0.7)
    raw(redis_client, "ended", "1000100-0", seq=0, data=data(bundle, 30, 1), end=1)  # its producer sent it again
    raw(redis_client, "goes on", "1000100-0", seq=1, data=data(bundle, 30, 2), end=1)
    with worker(url, bundle, **settings) as running:
        found = collect(consumer, ["goes on"])["goes on"]
        until(lambda: running.counts["duplicates"] == 1, "the duplicate")
    signal = np.concatenate([zoo.signal(bundle.manifest.input, 30, seed) for seed in (1, 2)])
    assert spoken([result for result in seen if result.stream == "goes on"] + found) == whole(bundle, signal)


def test_a_foreign_row_starts_the_stream_afresh(
    url: str, redis_client: redis.Redis, bundle: Bundle, consumer: Consumer
) -> None:
    """A row of another bundle, or a damaged one: discarded and told; the neighbour goes on."""
    streams = ["foreign", "cut", "damaged", "sound"]
    for stream in streams:
        raw(redis_client, stream, seq=0, data=data(bundle, 30, 1))
    with worker(url, bundle, publish="chunks"):
        seen: list[Result] = []
        while len(seen) < len(streams):
            seen += consumer.read(5)
    for stream in streams[:3]:
        key = Keys(TOPIC, GROUP, partition_of(stream, PARTITIONS)).row_prefix + stream
        row = redis_client.get(key)
        wrong = {"foreign": b"x" * len(row), "cut": row[:-1], "damaged": row[:24] + b"\x11" * 48 + row[72:]}
        redis_client.set(key, wrong[stream])
    for stream in streams:
        raw(redis_client, stream, seq=1, data=data(bundle, 30, 2), end=1)
    with worker(url, bundle, publish="chunks"):
        found = collect(consumer, streams)
    two = zoo.signal(bundle.manifest.input, 30, 2)
    for stream in streams[:3]:
        assert notes(found[stream]) == [["row_corrupt"]]
        assert spoken(found[stream]) == whole(bundle, two)
    one = zoo.signal(bundle.manifest.input, 30, 1)
    before = [result for result in seen if result.stream == "sound"]
    assert spoken(before + found["sound"]) == whole(bundle, np.concatenate([one, two]))


def test_a_stream_that_breaks_its_state_is_reset_alone(url: str, redis_client: redis.Redis) -> None:
    bundle = zoo.bundle("look_ahead")
    make_producer(url, bundle).close()
    with Consumer(TOPIC, GROUP, url=url, start="beginning") as consumer:
        good = zoo.signal(bundle.manifest.input, 30, 1)
        for stream in ("good", "wild"):
            raw(redis_client, stream, seq=0, data=good.tobytes())
        raw(redis_client, "wild", seq=1, data=np.full((9, 2), 3e38, "<f4").tobytes())
        for stream, seq in (("good", 1), ("wild", 2)):
            raw(redis_client, stream, seq=seq, data=good.tobytes(), end=1)
        with worker(url, bundle):
            found = collect(consumer, ["good", "wild"])
    assert spoken(found["good"]) == whole(bundle, np.concatenate([good, good]))
    assert notes(found["wild"]) == [[], ["broken"], []]
    assert spoken(found["wild"][2:]) == whole(bundle, good)


def test_a_bundle_that_does_not_fit_the_topic(url: str) -> None:
    make_producer(url, zoo.bundle("sensor")).close()
    with pytest.raises(ConfigError, match=r"sample_rate_hz is 50\.0 there and 16000\.0 here"):
        Worker(load_settings(url=url), bundle=zoo.bundle("audio")).run()


def test_an_empty_chunk_is_a_chunk(url: str, redis_client: redis.Redis, bundle: Bundle, consumer: Consumer) -> None:
    raw(redis_client, "s", seq=0, data=b"")
    raw(redis_client, "s", seq=1, data=data(bundle, 30, 1))
    raw(redis_client, "s", seq=2, data=b"", end=1)
    with worker(url, bundle):
        found = collect(consumer, ["s"])["s"]
    assert spoken(found) == whole(bundle, zoo.signal(bundle.manifest.input, 30, 1))
