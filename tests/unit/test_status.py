"""What probes are told."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pipeline import status
from pipeline.status import Reporter, faults, read

URL = "redis://calls.example:6379"


def reporter(folder: Path, topic: str = "calls", group: str = "digits") -> Reporter:
    return Reporter(folder, URL, "me", topic, group, lease_ms=1000, read_entries=256)


def change(path: Path, **facts: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_no_worker_is_neither_alive_nor_ready(tmp_path: Path) -> None:
    assert read(tmp_path / "none", URL, "calls", "digits") == []


def test_a_running_worker_with_its_share_is_ready(tmp_path: Path) -> None:
    reporter(tmp_path / "s").tell("running", owned=2, share=2, lag=3)
    (found,) = read(tmp_path / "s", URL, "calls", "digits")
    assert (found.pid, found.owned, found.lag, found.ready, found.why) == (os.getpid(), 2, 3, True, "")
    assert faults([found]) == []
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


def test_topics_and_groups_are_told_apart(tmp_path: Path) -> None:
    for topic, group in (("a", "b.c"), ("a.b", "c"), ("a/b", "*")):
        told = reporter(tmp_path, topic, group)
        told.tell("running")
        assert [(s.topic, s.group) for s in read(tmp_path, URL, topic, group)] == [(topic, group)]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"phase": "starting"}, "it is starting"),
        ({"phase": "draining"}, "it is draining"),
        ({"phase": "running", "owned": 1, "share": 2}, "it owns 1 of its share of 2 partitions"),
        ({"phase": "running", "trouble": "Redis is away: no answer"}, "Redis is away: no answer"),
    ],
)
def test_not_ready_but_alive(tmp_path: Path, facts: dict[str, object], why: str) -> None:
    reporter(tmp_path).tell(**facts)  # type: ignore[arg-type]
    found = read(tmp_path, URL, "calls", "digits")
    assert faults(found) == [f"worker {os.getpid()}: {why}"]
    assert faults(found, live=True) == []


def test_a_lag_must_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(status.time, "monotonic", lambda: now)
    told = reporter(tmp_path)
    seen = []
    for lag in (5000, 4000, 4500, 5200, 100):
        told.tell("running", owned=1, share=1, lag=lag)
        seen.append(read(tmp_path, URL, "calls", "digits")[0].ready)
        now += 1.0
    assert seen == [False, True, True, False, True]  # at first nobody knows; 100 is less than one read
    for lag, ready in ((3 * 256, True), (3 * 256 + 1, False)):
        told = reporter(tmp_path)
        told.tell("running", owned=1, share=1, lag=lag)
        assert read(tmp_path, URL, "calls", "digits")[0].ready == ready
    told = reporter(tmp_path)
    for _ in range(12):  # what was long ago does not count
        told.tell("running", owned=1, share=1, lag=3000)
        now += 1.0
    assert "does not fall: 3000 chunks" in read(tmp_path, URL, "calls", "digits")[0].why


def test_a_silent_worker_is_neither(tmp_path: Path) -> None:
    told = reporter(tmp_path)
    told.tell("running")
    change(told.path, at_s=0.0)
    found = read(tmp_path, URL, "calls", "digits")
    for live in (False, True):
        (fault,) = faults(found, live)
        assert "silent for" in fault


def test_a_killed_worker_is_forgotten(tmp_path: Path) -> None:
    told = reporter(tmp_path)
    told.tell("running")
    child = subprocess.Popen(["true"])
    child.wait()
    change(told.path, pid=child.pid)
    assert read(tmp_path, URL, "other", "digits") == []
    assert not told.path.exists()  # whoever looks takes it away


def test_another_process_of_that_number_is_not_the_worker(tmp_path: Path) -> None:
    """As in a container that was killed and started again: its worker has the number that the last one had."""
    told = reporter(tmp_path)
    told.tell("running")
    assert read(tmp_path, URL, "calls", "digits")
    change(told.path, born=1)
    assert read(tmp_path, URL, "calls", "digits") == []
    assert not told.path.exists()


def test_servers_are_told_apart(tmp_path: Path) -> None:
    reporter(tmp_path).tell("running")
    assert read(tmp_path, URL + "/1", "calls", "digits") == []
    assert len(read(tmp_path, URL, "calls", "digits")) == 1


def test_what_cannot_be_written_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = reporter(tmp_path / "file")
    told.tell("running")
    assert "file" in told.error
    told.clear()
