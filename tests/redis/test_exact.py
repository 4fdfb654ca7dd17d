"""Through Redis, in any chunks, alone or in company: what the whole signal yields, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest

from tests import nets, zoo
from tests.harness import Cut, assert_exact, collect, cut_up, digits, every, lively, make_producer, random_cut, worker

CUTS = {"7ms": every(7), "20ms": every(20), "100ms": every(100), "random": random_cut}


def through_redis(url: str, name: str, signals: dict[str, np.ndarray], cut: Cut, **settings: object) -> None:
    from pipeline.consumer import Consumer

    bundle = zoo.bundle(name)
    with (
        worker(url, bundle, **settings),
        make_producer(url, bundle) as producer,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        for batch in cut_up(bundle, signals, cut):
            producer.push_many(batch)
        assert_exact(bundle, signals, collect(consumer, list(signals)))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("streams", "server"), [(1, "embedded"), (1, "redis-server"), (65, "embedded")], indirect=["server"]
)
def test_spoken_digits(url: str, cut: str, streams: int) -> None:
    through_redis(url, "digits", digits(streams, seed=streams), CUTS[cut])


@pytest.mark.parametrize("server", ["embedded"], indirect=True)  # what is tried is the bundle, not the server
@pytest.mark.parametrize("name", ["audio", "sensor", "spectrogram", "look_ahead", "vad", "denoise", *nets.BUNDLES])
def test_every_kind_of_bundle(url: str, name: str) -> None:
    """Audio, sensor vectors and producer-made frames take the same path; so does a model that trails, one that was
    exported for a single stream, and one that yields audio; and every architecture that training knows."""
    through_redis(url, name, lively(zoo.bundle(name), 20), random_cut)


def test_more_streams_than_the_belt_holds(url: str) -> None:
    """Rows that fall off the belt come back from Redis as they were."""
    bundle = zoo.bundle("sensor")
    through_redis(url, "sensor", lively(bundle, 60), random_cut, belt_rows=16, read_entries=16, partitions=2)


def test_every_chunk_has_a_result_when_asked_for(url: str) -> None:
    from pipeline.consumer import Consumer

    bundle = zoo.bundle("audio")
    signals = lively(bundle, 3)
    sent: dict[str, int] = dict.fromkeys(signals, 0)
    with (
        worker(url, bundle, publish="chunks"),
        make_producer(url, bundle) as producer,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        for batch in cut_up(bundle, signals, random_cut):
            producer.push_many(batch)
            for name, _, _ in batch:
                sent[name] += 1
        found = collect(consumer, list(signals))
    assert {name: len(results) for name, results in found.items()} == sent
    assert_exact(bundle, signals, found)
