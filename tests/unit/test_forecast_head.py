"""The forecast head: which frames are forecasts, when they were made, and that a topic of hours carries them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog

from pipeline.consumer import Consumer
from pipeline.errors import ManifestError
from pipeline.head import Forecast
from pipeline.manifest import ForecastHead, Manifest
from pipeline.offline import run
from tests import zoo
from tests.harness import assert_exact, collect, lively, make_producer, until, worker
from tests.unit.test_cli import statebelt

SPEC = ForecastHead(series=("a", "b"), horizon=2, every_frames=3, context_frames=6)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(io.StringIO()))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("cuts", [[], [1], [2, 3, 4], [6, 6]])
def test_every_third_frame_is_a_forecast(cuts: list[int]) -> None:
    made, x = Forecast(SPEC, hop_samples=5), np.arange(40, dtype=np.float32).reshape(10, 4)
    state, at, warm, rows = made.initial_state(1), [], [], []
    for part in np.split(x, cuts):
        rows.append(made.published(part, int(state["frames"][0])))
        events, state = made.step(part[None], state)
        at += events.end.tolist()
        warm += events.score.tolist()
        assert events.start.tolist() == events.end.tolist()
    assert at == [15, 30, 45]
    assert warm == [0.5, 1.0, 1.0]
    assert np.concatenate(rows).tolist() == x[[2, 5, 8]].tolist()
    assert not len(made.flush(state).label)


def test_streams_of_a_batch_stand_at_different_places() -> None:
    made = Forecast(SPEC)
    events, _ = made.step(np.zeros((2, 4, 4), np.float32), {"frames": np.array([0, 2])})
    assert [events.stream.tolist(), events.end.tolist()] == [[1, 0, 1], [3, 3, 6]]


def test_labels_are_the_series_of_every_step() -> None:
    assert SPEC.labels == ("a+1", "b+1", "a+2", "b+2")
    told = json.loads(zoo.bundle("forecast_head").manifest.to_json())
    told["labels"] = told["labels"][::-1]
    with pytest.raises(ManifestError, match="has the labels 'a\\+1' to 'b\\+3'"):
        Manifest.from_values(told)
    told["head"]["horizon"] = 65_536  # says more than memory holds
    told["head"]["series"] = [str(n) for n in range(65_536)]
    with pytest.raises(ManifestError, match="65536 steps of 65536 series"):
        Manifest.from_values(told)


def test_a_topic_of_hours_carries_them(url: str) -> None:
    """Through Redis: the published rows and no others, an event for each, times in seconds of the stream."""
    bundle = zoo.bundle("forecast_head")
    signals = lively(bundle, 5)
    with (
        make_producer(url, bundle, "hours") as producer,
        Consumer("hours", "digits", url=url, start="beginning") as consumer,
        worker(url, bundle, topic="hours"),
    ):
        for start in range(0, 100, 7):
            for name, x in signals.items():
                if start < len(x):
                    producer.push(name, x[start : start + 7])
        for name in signals:
            producer.end(name)
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    events = [event for result in found["s-0"] for event in result.events]
    scores = np.concatenate([result.scores for result in found["s-0"] if result.scores is not None])
    assert [event.end_s for event in events] == [3600.0 * t for t in range(4, len(signals["s-0"]) + 1, 4)]
    assert scores.tobytes() == run(bundle, signals["s-0"]).scores[3::4].tobytes()
    assert [round(event.score, 2) for event in events[:4]] == [0.4, 0.8, 1.0, 1.0]


def test_run_shows_the_last_forecast(tmp_path: Path) -> None:
    """Of ten hours, every fourth of which makes one: the eighth hour's."""
    bundle, path, source = zoo.bundle("forecast_head"), tmp_path / "x.npz", tmp_path / "forecast.onnx"
    source.write_bytes(zoo.forecast())
    x = zoo.signal(bundle.manifest.input, 10)
    np.savez(path, x=x)
    (line,) = map(json.loads, statebelt("run", source, path, "--json")[0].splitlines())
    told = line["forecast"]
    assert (told["from_s"], told["step_s"], list(told["series"])) == (8 * 3600, 3600, ["a", "b"])
    row = run(bundle, x).scores[7]
    assert np.array([told["series"]["a"], told["series"]["b"]], np.float32).tolist() == [
        row[::2].tolist(),
        row[1::2].tolist(),
    ]
    out, _ = statebelt("run", source, path)
    assert "forecast, made at 28800 s" in out
    assert f"{row[0]:.4g}" in out
    np.savez(path, x=x[:3])
    assert "forecast" not in json.loads(statebelt("run", source, path, "--json")[0])


def test_a_worker_warns_where_streams_would_expire_between_two_samples(url: str) -> None:
    heard = io.StringIO()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(heard))
    bundle = zoo.bundle("forecast_head")
    with make_producer(url, bundle, "hours"), worker(url, bundle, topic="hours") as made:
        until(lambda: bool(made.owned), "its partitions")
    assert "streams expire between two samples: raise idle_ms" in heard.getvalue()
    heard.truncate(0)
    with worker(url, bundle, topic="hours", idle_ms=10_000_000) as made:
        until(lambda: bool(made.owned), "its partitions")
    assert "expire" not in heard.getvalue()
