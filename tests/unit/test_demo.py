"""The demo: it shows what a bundle hears, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import redis
import soundfile

from pipeline.bundle import SHIPPED, load
from pipeline.cli.demo.stage import stage
from pipeline.offline import run
from tests.harness import until
from tests.unit.test_cli import statebelt

SPOKEN = SHIPPED.parent / "recordings" / "digits.flac"

ENDINGS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}


def excerpt(path: Path, from_s: float, to_s: float) -> tuple[Path, list[str]]:
    """Some seconds of the shipped recording, and what the shipped bundle hears in them."""
    samples, rate_hz = soundfile.read(SPOKEN, dtype="int16")
    part = samples[int(from_s * rate_hz) : int(to_s * rate_hz)]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, part, rate_hz, subtype="PCM_16")
    return path, [event.label for event in run(load("digits"), np.asarray(part)).events]


def say_truth(path: Path, words: list[str]) -> None:
    path.with_suffix(".json").write_text(json.dumps({"words": [{"word": word} for word in words]}))


class Demo:
    """A demo in a process of its own, and all that it started."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "demo", *(str(argument) for argument in arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        )
        self.seen: dict[int, psutil.Process] = {}

    def children(self) -> list[psutil.Process]:
        """What runs below it now; remembered."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.seen |= {child.pid: child for child in found}
        return found

    def wait_for(self, kind: str) -> dict[str, Any]:
        """The first line of that kind of its `--json` output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            record = json.loads(line)
            self.children()
            if record["kind"] == kind:
                return dict(record)
        raise AssertionError(f"no {kind!r} came: {self.process.communicate()[1]}")

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def assert_nothing_left(self, *, folder: bool = True) -> None:
        """Every process that was seen has gone, and the folder with them."""
        assert self.seen, "nothing was seen to run"

        def gone() -> bool:
            return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in self.seen.values())

        until(gone, f"the end of {self.seen}", 20)
        if folder:
            assert list(self.folder.glob("statebelt-demo-*")) == []


@contextmanager
def demo(folder: Path, *arguments: object) -> Iterator[Demo]:
    made = Demo(folder, *arguments)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def test_streams_in_parallel_each_with_its_truth(tmp_path: Path) -> None:
    """A folder: every recording a stream; the summary is what was measured, and exit 0 what was recognised."""
    heard = {}
    for i, (from_s, to_s) in enumerate(((0.2, 1.8), (1.6, 3.0), (5.0, 6.3))):
        path, heard[f"{i}"] = excerpt(tmp_path / "in" / f"{i}.wav", from_s, to_s)
        say_truth(path, heard[f"{i}"])
    with demo(tmp_path, tmp_path / "in", "--json") as running:
        ready = running.wait_for("ready")
        assert psutil.pid_exists(ready["pids"]["worker"])
        assert psutil.pid_exists(ready["pids"]["server"])
        status, out, err = running.finish()
        running.assert_nothing_left()
    assert status == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    summary = lines.pop()
    assert summary["ok"] is True
    assert {s["stream"]: s["recognised"] for s in summary["streams"]} == heard
    assert {s["stream"]: s["expected"] for s in summary["streams"]} == heard
    assert sum(map(len, heard.values())) == len(lines) > 0
    assert all(0 <= line["score"] <= 1 and line["start_s"] < line["end_s"] for line in lines)
    assert summary["chunks"] == 16 + 14 + 13
    assert 0 < summary["latency_p50_ms"] <= summary["latency_p99_ms"]
    assert 0 < summary["real_time_factor"] < 1


def test_what_was_not_said_is_exit_1(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in ENDINGS}
    path, heard = excerpt(tmp_path / "x.wav", 0.2, 1.8)
    say_truth(path, [*heard, "nine"])
    out, _ = statebelt("demo", path, code=1)
    assert "not what was said" in out
    assert "p99" in out
    assert "real-time factor" in out
    assert {number: signal.getsignal(number) for number in ENDINGS} == before


def test_own_recordings_without_truth(tmp_path: Path) -> None:
    path, heard = excerpt(tmp_path / "x.wav", 0.2, 1.8)
    out, _ = statebelt("demo", path)
    assert "every stream was processed to its end" in out
    assert all(word in out for word in heard)


def test_an_unreadable_recording_among_others(tmp_path: Path) -> None:
    path, _ = excerpt(tmp_path / "x.wav", 0.2, 1.8)
    (tmp_path / "bad.wav").write_bytes(b"bad")
    out, err = statebelt("demo", path, tmp_path / "bad.wav", tmp_path / "absent.wav", code=2)
    assert "bad.wav: not a recording" in err
    assert "absent.wav: no such file" in err
    assert "every stream was processed to its end" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.wav",), "absent.wav: no such file"),
        (("--bundle", "nothing"), "no bundle at 'nothing'"),
    ],
)
def test_mistakes_start_nothing(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with demo(tmp_path, *arguments) as running:
        status, _, err = running.finish()
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_a_truth_that_is_none(tmp_path: Path) -> None:
    path, _ = excerpt(tmp_path / "x.wav", 0.2, 0.6)
    path.with_suffix(".json").write_text('["one"]')
    _, err = statebelt("demo", path, code=2)
    assert 'x.json: expected {"words"' in err


def test_somebody_elses_server_is_left_as_it_was(tmp_path: Path, url: str, redis_client: redis.Redis) -> None:
    redis_client.set("theirs", "1")
    path, _ = excerpt(tmp_path / "x.wav", 0.2, 1.2)
    out, _ = statebelt("demo", path, "--url", url, "--json")
    assert [json.loads(line)["kind"] for line in out.splitlines()][-1] == "summary"
    assert redis_client.keys() == [b"theirs"]


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    with demo(tmp_path, "--json") as running:
        ready = running.wait_for("ready")
        os.kill(ready["pids"]["worker"], signal.SIGKILL)
        status, _, err = running.finish()
        running.assert_nothing_left()
    assert status == 1
    assert "the worker ended with status -9; its log:" in err


@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: signal.Signals(number).name)
def test_ended_while_it_speaks_nothing_is_left(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path, "--json") as running:
        running.wait_for("word")
        running.process.send_signal(number)
        status, _, err = running.finish()
        running.assert_nothing_left(folder=number != signal.SIGKILL)
    assert status == ENDINGS[number]
    assert err == ""


def _server_starts(running: Demo) -> bool:
    return len(running.children()) >= 1


def _worker_starts(running: Demo) -> bool:
    return len(running.children()) >= 2


@pytest.mark.parametrize("moment", [_server_starts, _worker_starts], ids=["server starts", "worker starts"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: signal.Signals(number).name)
def test_ended_while_it_starts_nothing_is_left(
    tmp_path: Path, moment: Callable[[Demo], bool], number: signal.Signals
) -> None:
    with demo(tmp_path) as running:
        until(lambda: moment(running), "processes")
        running.process.send_signal(number)
        status, _, err = running.finish()
        running.assert_nothing_left(folder=number != signal.SIGKILL)
    assert status == ENDINGS[number]
    assert "Traceback" not in err


class Unseen:
    """Its finaliser is where a signal arrives: Python prints what the handler raises there, and goes on."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_within_a_finaliser_is_not_lost(number: signal.Signals, raised: type[BaseException]) -> None:
    def be_interrupted() -> None:
        with stage("digits", None) as running:
            unseen = Unseen(number)
            del unseen
            running.await_ready()

    with pytest.raises(raised):
        be_interrupted()
