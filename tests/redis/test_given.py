"""What a producer gives a stream once: it holds from there on, survives crashes and gaps, and ends with the stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline.broker.keys import Keys, log_key, partition_of
from pipeline.consumer import Consumer, Result
from pipeline.errors import ChunkRejected
from pipeline.producer import Producer
from tests import zoo
from tests.harness import WorkerProcess, collect, make_producer, until, worker

from .producers import KINDS, making

BUNDLE = zoo.bundle("given")
VALUES = np.arange(1, 9, dtype=np.float32) / 8
OTHERS = -VALUES


def said(results: list[Result]) -> bytes:
    return b"".join(result.scores.tobytes() for result in results if result.scores is not None)


def whole(samples: np.ndarray, given: np.ndarray | None) -> bytes:
    return BUNDLE.forward(samples, given).scores.tobytes()


def test_it_matters() -> None:
    samples = zoo.signal(BUNDLE.manifest.input, 50)
    assert len({whole(samples, given) for given in (None, VALUES, OTHERS)}) == 3


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_stream_has_its_own(url: str, kind: object) -> None:
    """Also the stream's next life, to which nobody gives anything."""
    signals = {name: zoo.signal(BUNDLE.manifest.input, 60, seed=i) for i, name in enumerate("abc")}
    given = {"a": VALUES, "b": OTHERS, "c": None}
    spec = BUNDLE.manifest.input
    with making(kind, url) as make, worker(url, BUNDLE):  # type: ignore[arg-type]
        producer = make(sample_rate_hz=spec.sample_rate_hz, channels=spec.channels, sample_type=spec.sample_type)
        for name, values in given.items():
            if values is not None:
                producer.give(name, values)
        for at in range(0, 60, 7):
            for name, samples in signals.items():
                producer.push(name, samples[at : at + 7], end=at + 7 >= 60)
        with Consumer("audio", "digits", url=url, start="beginning") as consumer:
            found = collect(consumer, list(signals))
            for name, samples in signals.items():
                assert said(found[name]) == whole(samples, given[name]), name
                notes = [note["kind"] for result in found[name] for note in result.notes]
                assert notes == ([] if given[name] is not None else ["not_given"])
            producer.push("a", signals["a"], end=True)
            assert said(collect(consumer, ["a"])["a"]) == whole(signals["a"], None)


def test_it_outlives_a_killed_worker_and_a_gap(url: str, tmp_path: Path) -> None:
    path = tmp_path / "given.onnx"
    path.write_bytes(zoo.given())
    samples = zoo.signal(BUNDLE.manifest.input, 90)
    with make_producer(url, BUNDLE) as producer, Consumer("audio", "digits", url=url, start="beginning") as consumer:
        producer.give("s", VALUES)
        producer.push("s", samples[:30])
        first = WorkerProcess(url, path, tmp_path, lease_ms=1000)
        results = consumer.read(timeout_s=30)
        first.kill()
        seq = producer.push("s", samples[30:60])
        with worker(url, BUNDLE, lease_ms=1000):
            while sum(len(r.scores) for r in results if r.scores is not None) < 60:
                results += consumer.read(timeout_s=30)
            assert said(results) == whole(samples[:60], VALUES)
            log = log_key("audio", partition_of("s", producer.partitions))
            with redis.Redis.from_url(url) as client:
                client.xadd(log, {"stream": "s", "seq": seq + 5, "data": samples[60:].tobytes(), "end": "1"})
            after = collect(consumer, ["s"])["s"]
    assert [note["kind"] for result in after for note in result.notes] == ["gap"]
    assert said(after) == whole(samples[60:], VALUES)


def test_a_group_that_takes_none_takes_it_for_a_chunk_without_samples(url: str, redis_client: redis.Redis) -> None:
    """Two groups on one topic, one of a bundle that is given something: the other's stream is not disturbed."""
    bundle = zoo.bundle("sensor")
    samples = zoo.signal(bundle.manifest.input, 20)
    with make_producer(url, bundle) as producer, worker(url, bundle):
        producer.push("s", samples[:9])
        producer.give("s", VALUES)
        producer.push("s", samples[9:], end=True)
        with Consumer("audio", "digits", url=url, start="beginning") as consumer:
            found = collect(consumer, ["s"])["s"]
    assert said(found) == bundle.forward(samples).scores.tobytes()
    assert not any(result.notes for result in found)
    assert redis_client.xlen(Keys("audio", "digits", partition_of("s", 4)).dead) == 0


@pytest.mark.parametrize("values", [VALUES[:-1], np.empty(0, np.float32)])
def test_what_does_not_fit_is_a_dead_letter(url: str, redis_client: redis.Redis, values: np.ndarray) -> None:
    bundle = BUNDLE
    samples = zoo.signal(bundle.manifest.input, 20)
    with make_producer(url, bundle) as producer, worker(url, bundle):
        producer.give("s", values)
        producer.push("neighbour", samples, end=True)
        dead = Keys("audio", "digits", partition_of("s", 4)).dead
        until(lambda: redis_client.xlen(dead) == 1, "the dead letter")
        (letter,) = redis_client.xrange(dead)
        assert letter[1][b"reason"] == b"bad_given"
        with Consumer("audio", "digits", url=url, start="beginning") as consumer:
            assert said(collect(consumer, ["neighbour"])["neighbour"]) == bundle.forward(samples).scores.tobytes()


@pytest.mark.parametrize("values", [VALUES.astype(np.float64), np.full(8, np.nan, np.float32)])
def test_what_no_bundle_takes_is_refused_at_once(url: str, values: np.ndarray) -> None:
    with make_producer(url, BUNDLE) as producer, pytest.raises(ChunkRejected):
        producer.give("s", values)


def test_it_is_no_sample_of_the_stream(url: str) -> None:
    with make_producer(url, BUNDLE) as producer:
        producer.give("s", VALUES)
        producer.push("s", zoo.signal(BUNDLE.manifest.input, 5))
    with Producer("audio", url=url) as after:
        assert after.resume("s").samples == 5


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_it_is_not_the_next_producers(url: str, kind: object) -> None:
    """One gives and dies; another begins the same name, and gives nothing: it is another speaker's stream."""
    samples = zoo.signal(BUNDLE.manifest.input, 60)
    spec = BUNDLE.manifest.input
    with making(kind, url) as make, worker(url, BUNDLE):  # type: ignore[arg-type]
        options = {"sample_rate_hz": spec.sample_rate_hz, "channels": spec.channels, "sample_type": spec.sample_type}
        dead = make(**options)
        dead.give("s", VALUES)
        dead.push("s", samples[:20])
        other = make(**options)
        other.push("s", samples[20:40])
        other.push("s", samples[40:], end=True)
        with Consumer("audio", "digits", url=url, start="beginning") as consumer:
            found = collect(consumer, ["s"])["s"]
    first = next(n for n, result in enumerate(found) if result.notes)
    assert [note["kind"] for result in found for note in result.notes] == ["gap", "not_given"]
    assert said(found[:first]) == whole(samples[:20], VALUES)
    assert said(found[first:]) == whole(samples[20:], None)
