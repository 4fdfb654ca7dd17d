"""A bundle whose model counts samples and knows no seconds: every topic's and every file's rate is right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from pipeline.bundle import Bundle, from_bytes
from pipeline.cli.app import app
from pipeline.consumer import Consumer
from pipeline.errors import ConfigError
from pipeline.manifest import METADATA_KEY
from pipeline.offline import run
from pipeline.producer import Producer
from pipeline.settings import load_settings
from pipeline.worker import Worker
from tests import zoo
from tests.harness import collect, lively, worker


def of_any_rate() -> bytes:
    """The zoo's alarm, one sample a minute, which says that any rate will do."""
    model = onnx.load_from_string(zoo.ZOO["anomaly_head"]())
    manifest = zoo.bundle("anomaly_head").manifest
    told = manifest.model_copy(update={"input": manifest.input.model_copy(update={"any_rate": True})})
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return zoo.with_manifest(model, told)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return from_bytes(of_any_rate(), "any rate")


def signal() -> np.ndarray:
    """`[N, 2]` float32, of which the bundle makes several events."""
    (made,) = lively(zoo.bundle("anomaly_head"), 1, 400).values()
    return made


def test_times_are_told_by_the_rate_of_the_samples(bundle: Bundle) -> None:
    usual, hourly = run(bundle, signal()), run(bundle, signal(), rate_hz=1 / 3600)
    assert usual.events
    assert hourly.seconds == 60 * usual.seconds
    assert [(e.start_s, e.end_s, e.score) for e in hourly.events] == [
        (60 * e.start_s, 60 * e.end_s, e.score) for e in usual.events
    ]
    assert hourly.scores.tobytes() == usual.scores.tobytes()


def test_others_are_of_one_rate() -> None:
    with pytest.raises(ConfigError, match="resample them"):
        run(zoo.bundle("anomaly_head"), signal(), rate_hz=1 / 3600)


def test_a_topic_at_its_own_rate(url: str, bundle: Bundle) -> None:
    """A worker takes it, and tells times by it; a bundle of one rate refuses the topic as ever."""
    spec = {"sample_rate_hz": 1 / 3600, "channels": 2, "sample_type": "float32"}
    expected = run(bundle, signal(), rate_hz=1 / 3600).events
    with (
        Producer("audio", url=url, **spec) as producer,  # type: ignore[arg-type]
        worker(url, bundle, idle_ms=10**9),
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        for part in np.array_split(signal(), 7):
            producer.push("s", part)
        producer.end("s")
        found = collect(consumer, ["s"])["s"]
    assert [event for result in found for event in result.events] == expected
    with pytest.raises(ConfigError, match="rate"):
        Worker(load_settings(url=url, topic="audio", group="other"), bundle=zoo.bundle("anomaly_head")).run()


def test_run_takes_a_table_at_its_own_rate(tmp_path: Path, bundle: Bundle) -> None:
    file, table = tmp_path / "any.onnx", tmp_path / "hourly.csv"
    file.write_bytes(of_any_rate())
    rows = [f"2026-01-{1 + n // 24:02d} {n % 24:02d}:00:00,{a},{b}" for n, (a, b) in enumerate(signal().tolist())]
    table.write_text("\n".join(["time,a,b", *rows]))
    done = CliRunner().invoke(app, ["run", str(file), str(table), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["seconds"] == len(signal()) * 3600
    expected = run(bundle, signal(), rate_hz=1 / 3600).events
    assert [(e["start_s"], e["end_s"]) for e in told["events"]] == [(e.start_s, e.end_s) for e in expected]
