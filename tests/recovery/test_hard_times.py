"""What could keep a worker from ever getting on: batches longer than its lease, a server that is full or away."""

from __future__ import annotations

import time

import pytest

from pipeline.batcher import Batcher, Output
from pipeline.component import Array
from pipeline.consumer import Consumer
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, lively, make_producer, random_cut, worker


def test_a_batch_that_outlasts_the_lease_is_followed_by_smaller_ones(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog of chunks that take the model longer than the lease: fenced once or twice, then through, exactly."""
    bundle, whole_run = zoo.bundle("sensor"), Batcher.run

    def slow(self: Batcher, rows: Array, chunks: list[Array], ends: Array) -> list[Output]:
        time.sleep(0.02 * len(chunks))
        return whole_run(self, rows, chunks, ends)

    signals = lively(bundle, 8)
    with make_producer(url, bundle) as producer:
        batches = list(cut_up(bundle, signals, random_cut))
        for batch in batches:
            producer.push_many(batch)
    assert sum(map(len, batches)) * 0.02 > 0.8
    monkeypatch.setattr(Batcher, "run", slow)
    with worker(url, bundle, lease_ms=400), Consumer("audio", "digits", url=url, start="beginning") as consumer:
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
