"""`statebelt push --when-full`: what is told when workers lag."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis

from pipeline.broker.keys import log_key
from tests.unit.test_cli import recording, statebelt


@pytest.fixture
def push(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """A push of 30 chunks to a partition that takes 20, with no worker."""
    monkeypatch.setenv("STATEBELT_MAX_BACKLOG", "20")
    monkeypatch.setenv("STATEBELT_PARTITIONS", "1")
    path = recording(tmp_path / "x.wav", 3.0)
    return ("push", path, "--rate", 16_000, "--url", url, "--when-full")


def test_refuse_stops_at_once(push: tuple[object, ...], redis_client: redis.Redis) -> None:
    _, err = statebelt(*push, "refuse", code=1)
    assert "partition 0 has 20 unread chunks. Wait, or start workers." in err
    assert redis_client.xlen(log_key("audio", 0)) == 20


def test_drop_oldest_tells_what_was_dropped(
    push: tuple[object, ...], redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.cli.push._TIMEOUT_S", 0.1)
    out, err = statebelt(*push, "drop_oldest")
    assert "pushed 1 recording, 3.0 s of signal" in out
    assert "dropped 10 of 30 chunks: workers lag behind; 1 stream has no end" in " ".join(err.split())
    assert redis_client.xlen(log_key("audio", 0)) == 20
    out, _ = statebelt(*push, "drop_oldest", "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert told[0]["chunks"] == 30  # its last_seq is known, or not, as the sender was quicker than the pushes, or not
    assert told[1] == {"topic": "audio", "pushed": 0, "dropped": 30, "dropped_ends": 1}


def test_drop_oldest_tells_nothing_where_nothing_was(push: tuple[object, ...], redis_client: redis.Redis) -> None:
    out, err = statebelt(*push[:-1], "--chunk-ms", 300, "--when-full", "drop_oldest", "--json")
    assert len(out.splitlines()) == 1
    assert err == ""
    assert redis_client.xlen(log_key("audio", 0)) == 10


def test_another_word_is_refused(push: tuple[object, ...]) -> None:
    _, err = statebelt(*push, "drop", code=2)
    assert "'block', 'refuse', 'drop_oldest'" in " ".join(err.replace("│", " ").split())
