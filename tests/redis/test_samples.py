"""Audio through Redis: N samples in, N samples out, as float32 in a field of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import redis

from pipeline.broker import topic as topics
from pipeline.broker.keys import Keys, partition_of
from pipeline.consumer import Consumer
from pipeline.offline import run
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, every, lively, make_producer, worker


@pytest.mark.parametrize("publish", ["events", "chunks"])
def test_a_denoised_stream_is_what_the_whole_yields(url: str, redis_client: redis.Redis, publish: str) -> None:
    bundle = zoo.bundle("denoise")
    signals = lively(bundle, 12, blocks=90)
    with (
        worker(url, bundle, publish=publish),
        make_producer(url, bundle) as producer,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        for batch in cut_up(bundle, signals, every(5)):
            producer.push_many(batch)
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    for name, x in signals.items():
        made = [result.samples for result in found[name] if result.samples is not None]
        assert sum(map(len, made)) == len(x)
        assert np.concatenate(made).tobytes() == run(bundle, x).samples.tobytes()
        assert all(result.scores is None for result in found[name])
    fields: dict[bytes, bytes] = next(
        entry
        for p in range(4)
        for _, entry in redis_client.xrange(Keys("audio", "digits", p).out)
        if b"samples" in entry
    )
    assert len(fields[b"samples"]) % 4 == 0
    assert b"scores" not in fields


def test_a_chunk_without_audio_of_its_own_is_silent(url: str) -> None:
    """With publish=events: the first 48 samples complete none, the 64 behind them do, and the end says what is left."""
    bundle = zoo.bundle("denoise")
    x = zoo.signal(bundle.manifest.input, 120)
    with (
        worker(url, bundle),
        make_producer(url, bundle) as producer,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        seqs = [producer.push("s", part, end=n == 2) for n, part in enumerate((x[:48], x[48:112], x[112:]))]
        found = collect(consumer, ["s"])["s"]
    assert [(result.seq, len(result.samples)) for result in found] == [(seqs[1], 64), (seqs[2], 56)]


WRONG: dict[str, bytes] = {
    "no whole number of samples": b"12345",
    "NaN": np.array([0, np.nan], "<f4").tobytes(),
    "infinity": np.array([-np.inf], "<f4").tobytes(),
}


@pytest.mark.parametrize("case", WRONG)
def test_audio_that_no_worker_wrote(url: str, redis_client: redis.Redis, case: str) -> None:
    topics.create(redis_client, topics.Topic("audio", 8000.0, "float32", 1, 4))
    entry: dict[Any, Any] = {"stream": "s", "seq": "0", "events": "[]"}
    log = Keys("audio", "digits", partition_of("s", 4)).out
    redis_client.xadd(log, {**entry, "samples": WRONG[case]})
    redis_client.xadd(log, {**entry, "samples": np.array([0.5, -1], "<f4").tobytes()})
    with Consumer("audio", "digits", url=url, start="beginning") as consumer:
        (result,) = consumer.read(5)
        assert consumer.skipped == 1
    assert result.samples is not None
    assert result.samples.tolist() == [0.5, -1]
