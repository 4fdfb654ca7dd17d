"""Series of sensors through Redis, in chunks of any size: the anomalies that `run` tells, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.consumer import Consumer
from pipeline.offline import run
from tests import zoo
from tests.harness import DATA, assert_exact, collect, cut_up, make_producer, worker


def real(name: str) -> dict[str, np.ndarray]:
    """Traffic, one value in five minutes; or a water loop's eight sensors, one value a second."""
    folder, pattern, columns, split = {
        "anomaly": ("nab", "data/realTraffic/*.csv", (1,), ","),
        "anomaly8": ("skab", "data/valve2/*.csv", range(1, 9), ";"),
    }[name]
    files = sorted((DATA / folder).glob(pattern))
    if not files:
        pytest.skip(f"no corpus at {DATA / folder} (set STATEBELT_DATA)")
    return {
        file.stem: np.loadtxt(file, np.float32, delimiter=split, skiprows=1, usecols=columns, ndmin=2)
        for file in files[:4]
    }


def any_size(rng: np.random.Generator, _: object) -> int:
    return int(rng.choice([0, 1, 3, 50, 700]))


@pytest.mark.parametrize("name", ["anomaly", "anomaly8"])
def test_real_series_in_random_chunks(url: str, name: str) -> None:
    bundle, signals = zoo.bundle(name), real(name)
    told = {stream: run(bundle, samples).events for stream, samples in signals.items()}
    assert all(told.values())  # each of them has anomalies
    with (
        worker(url, bundle),
        make_producer(url, bundle) as producer,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        for batch in cut_up(bundle, signals, any_size):
            producer.push_many(batch)
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    for stream, expected in told.items():
        assert [event for result in found[stream] for event in result.events] == expected
