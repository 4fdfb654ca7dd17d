"""`statebelt topics`: what needs a hand is told, and what does not is not."""

from __future__ import annotations

import json

import pytest
import redis

from pipeline.broker import topic as topics
from pipeline.broker.keys import Keys, log_key
from pipeline.broker.lease import Granted, acquire, release
from pipeline.broker.partition import Commit, commit
from tests.unit.test_cli import statebelt

MINUTE_MS = 60_000


@pytest.fixture
def old(redis_client: redis.Redis) -> list[bytes]:
    """Chunks of a quarter of an hour ago, and one of now, on both partitions of a topic."""
    topics.create(redis_client, topics.Topic("calls", 8000.0, "int16", 1, 2))
    seconds, micros = redis_client.time()
    now_ms = seconds * 1000 + micros // 1000
    ids = [b"%d-%d" % (now_ms - 15 * MINUTE_MS, i) for i in range(3)] + [b"%d-0" % now_ms]
    for partition in range(2):
        for id_ in ids:
            redis_client.xadd(log_key("calls", partition), {"stream": "s", "seq": "0", "data": "x"}, id=id_)
    return ids


def read_up_to(client: redis.Redis, group: str, id_: bytes, read: int, *, stay: bool, dead: bool = False) -> None:
    """A worker of `group` was on both partitions, and is still there or has left."""
    for partition in range(2):
        granted = acquire(client, Keys("calls", group, partition), "host-7", 600_000)
        assert isinstance(granted, Granted)
        letters = [(id_, {b"reason": b"bad_seq"})] if dead else []
        commit(client, granted.lease, Commit(b"0-0", id_, read, dead=letters))
        if not stay:
            release(client, [granted.lease])


def told(url: str) -> dict[str, object]:
    (line,) = statebelt("topics", "--url", url, "--json")[0].splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def group_of(found: dict[str, object], group: str) -> dict[str, object]:
    (mine,) = [each for each in found["partitions"][1]["groups"] if each["group"] == group]  # type: ignore[index]
    assert isinstance(mine, dict)
    return mine


def test_a_group_that_keeps_up(url: str, redis_client: redis.Redis, old: list[bytes]) -> None:
    read_up_to(redis_client, "digits", old[2], 3, stay=True, dead=True)
    found = told(url)
    mine = group_of(found, "digits")
    assert (mine["owner"], mine["lag"], mine["dead"]) == ("host-7", 1, 1)
    assert (mine["unowned"], mine["holds_back"], found["warnings"]) == (False, False, [])
    assert 0 <= mine["unread_ms"] < MINUTE_MS  # type: ignore[operator]
    out, err = statebelt("topics", "--url", url)
    assert "host-7" in out
    assert err == ""


def test_a_group_that_has_read_all_needs_nobody(url: str, redis_client: redis.Redis, old: list[bytes]) -> None:
    read_up_to(redis_client, "digits", old[3], 4, stay=False)
    found = told(url)
    mine = group_of(found, "digits")
    assert (mine["owner"], mine["lag"], mine["unread_ms"]) == (None, 0, None)
    assert (mine["unowned"], mine["holds_back"], found["warnings"]) == (False, False, [])


def test_chunks_that_wait_for_nobody(url: str, redis_client: redis.Redis, old: list[bytes]) -> None:
    read_up_to(redis_client, "digits", old[0], 1, stay=False)
    found = told(url)
    mine = group_of(found, "digits")
    assert (mine["owner"], mine["lag"], mine["unowned"], mine["holds_back"]) == (None, 3, True, True)
    assert 15 * MINUTE_MS <= mine["unread_ms"] < 20 * MINUTE_MS  # type: ignore[operator]
    out, err = statebelt("topics", "--url", url)
    assert "nobody" in out
    assert found["warnings"] == [err.removeprefix("warning: ").removesuffix("\n")]
    assert err == (
        "warning: nobody works for group 'digits' on partitions 0, 1 of 'calls': 6 chunks wait, the oldest for 15 min: "
        "start `statebelt worker --topic calls --group digits --bundle ...` with the bundle that it ran, or, if it is "
        "not needed any more, `statebelt group drop digits --topic calls`\n"
    )


def test_a_group_that_is_late(url: str, redis_client: redis.Redis, old: list[bytes]) -> None:
    read_up_to(redis_client, "fast", old[3], 4, stay=True)
    read_up_to(redis_client, "slow", old[1], 2, stay=True)
    found = told(url)
    assert group_of(found, "slow")["holds_back"]
    assert not group_of(found, "slow")["unowned"]
    assert not group_of(found, "fast")["holds_back"]
    (warning,) = found["warnings"]  # type: ignore[misc]
    assert warning == (
        "group 'slow' holds back trimming on partitions 0, 1 of 'calls': 4 chunks wait, the oldest for 15 min: "
        "it needs more workers, or time"
    )


def test_a_single_chunk_waits(url: str, redis_client: redis.Redis, old: list[bytes]) -> None:
    read_up_to(redis_client, "digits", old[2], 3, stay=False)
    redis_client.xgroup_setid(log_key("calls", 1), "digits", old[3], entries_read=4)
    assert ": 1 chunk waits, the oldest for" in str(told(url)["warnings"])


def test_what_is_late_is_the_settings_to_say(
    url: str, redis_client: redis.Redis, old: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_up_to(redis_client, "slow", old[1], 2, stay=True)
    monkeypatch.setenv("STATEBELT_INPUT_RETENTION_MS", str(30 * MINUTE_MS))
    assert told(url)["warnings"] == []


@pytest.mark.parametrize("name", [b"mine:and {yours}", b"[red]x[/red]:", b"\x1b[2J:\xff"])
def test_a_group_that_is_no_deployment(url: str, redis_client: redis.Redis, old: list[bytes], name: bytes) -> None:
    """Somebody reads our log through a group of his own: it used to end the command."""
    redis_client.xgroup_create(log_key("calls", 1), name, id=old[1])
    found = told(url)
    (mine,) = found["partitions"][1]["groups"]  # type: ignore[index]
    assert (mine["owner"], mine["unowned"], mine["holds_back"]) == (None, False, True)
    (warning,) = found["warnings"]  # type: ignore[misc]
    assert "an unknown number of chunks wait" in warning  # Redis cannot know it in the middle of a log
    assert "It is no deployment" in warning
    out, err = statebelt("topics", "--url", url)
    assert all(c.isprintable() or c == "\n" for c in out + err)
