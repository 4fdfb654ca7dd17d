"""Sensor files through the command line: as `run` says, so they come out of a topic, at their own rate."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog
from typer import BadParameter

from pipeline import sensor
from pipeline.broker.connection import connect
from pipeline.broker.topic import describe
from pipeline.cli.values import _rate
from pipeline.consumer import Consumer
from pipeline.manifest import InputSpec
from pipeline.offline import run
from tests import zoo
from tests.harness import collect, spoken, until, whole, worker
from tests.unit.test_cli import statebelt

SPEC = zoo.bundle("sensor").manifest.input
NAMES = ("ax", "ay", "az", "gx", "gy", "gz")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The logs of workers in this process stay off its standard output, which is under test."""
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(io.StringIO()))
    yield
    structlog.reset_defaults()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "sensor.onnx"
    path.write_bytes(zoo.sensor())
    return path


def npz(path: Path, samples: int, seed: int = 0) -> Path:
    np.savez(path, label=np.zeros(samples, np.int8), imu=zoo.signal(SPEC, samples, seed))
    return path


def table(path: Path, x: np.ndarray, step_s: float | None, names: tuple[str, ...] = NAMES) -> Path:
    """With times from 2016 on, `step_s` apart, and a column that no model wants."""
    rows = [",".join([*(["time"] if step_s else []), *names, "label"])]
    start = np.datetime64("2016-07-01T00:00:00.000")
    for n, row in enumerate(x.tolist()):
        when = [str(start + np.timedelta64(round(n * step_s * 1000), "ms"))] if step_s else []
        rows.append(",".join([*when, *map(repr, row), "quiet"]))
    path.write_text("\n".join(rows) + "\n")
    return path


def test_run_gives_one_exact_line_a_file(tmp_path: Path, bundle: Path) -> None:
    x = zoo.signal(SPEC, 120)
    files = [npz(tmp_path / "a.npz", 120), table(tmp_path / "b.csv", x, 0.02)]
    out, _ = statebelt(
        "run", bundle, files[1], "--columns", ",".join(NAMES), "--json", "--scores", tmp_path / "csv.npz"
    )
    (line,) = map(json.loads, out.splitlines())
    assert line == {"file": str(files[1]), "seconds": 2.4, "events": []}
    statebelt("run", bundle, files[0], "--chunk-ms", 60, "--json", "--scores", tmp_path / "npz.npz")
    expected = run(zoo.bundle("sensor"), x).scores.tobytes()
    assert np.load(tmp_path / "csv.npz")[str(files[1])].tobytes() == expected
    assert np.load(tmp_path / "npz.npz")[str(files[0])].tobytes() == expected


def test_run_tells_what_does_not_fit_and_goes_on(tmp_path: Path, bundle: Path) -> None:
    slow = table(tmp_path / "slow.csv", zoo.signal(SPEC, 5), 1.0)
    good = npz(tmp_path / "a.npz", 9)
    wide = tmp_path / "wide.npz"
    np.savez(wide, x=np.zeros((4, 7)))
    out, err = statebelt("run", bundle, wide, good, "--json", code=2)
    assert [json.loads(line)["file"] for line in out.splitlines()] == [str(good)]
    assert "7 columns (0, 1, 2, 3, 4, 5, 6), expected 6" in err
    _, err = statebelt("run", bundle, slow, "--columns", ",".join(NAMES), code=2)
    assert "1 s apart, expected 0.02 s (50 Hz)" in err
    _, err = statebelt("run", bundle, slow, code=2)
    assert "column 'label': 'quiet' is no number" in err


def test_verify_takes_sensors(tmp_path: Path, bundle: Path) -> None:
    path = table(tmp_path / "x.csv", zoo.signal(SPEC, 300), 0.02)
    out, _ = statebelt("verify", bundle, path, "--columns", ",".join(NAMES), "--seconds", 1, "--streams", 3, "--json")
    assert {json.loads(line)["verdict"] for line in out.splitlines()} == {"exact"}


@pytest.mark.parametrize("flags", [(), ("--pace", "realtime", "--speed", "50"), ("--chunk-ms", "7")], ids=" ".join)
def test_what_is_pushed_is_what_run_says(url: str, tmp_path: Path, flags: tuple[str, ...]) -> None:
    paths = [npz(tmp_path / "a.npz", 333), npz(tmp_path / "b.npz", 200, seed=1)]
    bundle = zoo.bundle("sensor")
    with worker(url, bundle, topic="phones") as made:  # there is the topic then: a .npz file tells no rate
        until(lambda: bool(made.owned), "its partitions")
        statebelt("push", *paths, "--topic", "phones", "--url", url, *flags)
        with Consumer("phones", "digits", url=url, start="beginning") as consumer:
            found = collect(consumer, ["a", "b"])
    for path in paths:
        assert spoken(found[path.stem]) == whole(bundle, sensor.read(path, SPEC))


def test_a_new_topic_is_what_its_first_file_is(url: str, tmp_path: Path) -> None:
    path = table(tmp_path / "hours.csv", np.arange(12.0).reshape(6, 2), 3600, ("a", "b"))
    out, _ = statebelt("push", path, "--topic", "hours", "--columns", "b,a", "--url", url, "--json")
    (line,) = map(json.loads, out.splitlines())
    assert (line["seconds"], line["chunks"]) == (6 * 3600, 6)
    client = connect(url)
    made = describe(client, "hours")
    client.close()
    assert made is not None
    assert (made.sample_rate_hz, made.channels, made.sample_type) == (1 / 3600, 2, "float32")
    _, err = statebelt("push", npz(tmp_path / "a.npz", 5), "--topic", "new", "--url", url, code=2)
    assert "say --rate: 50, or 1/3600 if hourly" in err
    _, err = statebelt("push", path, "--topic", "new", "--rate", "1/0", "--url", url, code=2)
    assert "give Hz above 0" in err
    _, err = statebelt("push", path, "--topic", "hours", "--speed", 2, "--url", url, code=2)
    assert "give --pace realtime with it" in err


def test_hours_go_by_as_fast_as_one_says(url: str, tmp_path: Path) -> None:
    path = table(tmp_path / "hours.csv", np.arange(12.0).reshape(6, 2), 3600, ("a", "b"))
    began_s = time.monotonic()
    flags = ("--pace", "realtime", "--speed", 3600 * 20, "--rate", "1/3600")
    statebelt("push", path, "--topic", "hours", "--columns", "a,b", "--url", url, *flags)
    assert 6 / 20 <= time.monotonic() - began_s < 3


@pytest.mark.parametrize(("text", "hz"), [("50", 50.0), ("1/3600", 1 / 3600), ("0.5", 0.5), ("1e-3", 1e-3)])
def test_rates_may_be_fractions(text: str, hz: float) -> None:
    """And are what a manifest holds of them, to the last bit, over JSON too."""
    assert _rate(text) == hz
    spec = InputSpec(sample_rate_hz=_rate(text))
    assert InputSpec.model_validate_json(spec.model_dump_json()).sample_rate_hz == hz
    for wrong in ("0", "-1", "x", "1/0"):
        with pytest.raises(BadParameter, match="is no rate"):
            _rate(wrong)
