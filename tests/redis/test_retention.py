"""Trimming follows the slowest group, and forgets no id."""

from __future__ import annotations

import pytest
import redis

from pipeline.broker.keys import Keys
from pipeline.broker.lease import release
from pipeline.broker.partition import Commit, commit
from pipeline.broker.retention import trim
from pipeline.errors import ConfigError

from .helpers import grant, ids_of, lag, push

SLOW, FAST = Keys("calls", "slow", 0), Keys("calls", "fast", 0)
GROUPS = ["slow", "fast"]
HOUR_MS = 3_600_000


def first_of(client: redis.Redis, key: str) -> bytes:
    return client.xrange(key, count=1)[0][0]


def now_ms(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000


def test_trimming_follows_the_slowest_group(client: redis.Redis) -> None:
    push(client, SLOW, ids_of(1, 10))  # ids of 1970: older than any retention
    commit(client, grant(client, FAST).lease, Commit(b"0-0", b"10-0", 10))
    slow = grant(client, SLOW).lease  # has not read yet
    assert trim(client, "calls", 0, GROUPS, 0, HOUR_MS) == (0, 0)
    commit(client, slow, Commit(b"0-0", b"4-0", 4))
    assert trim(client, "calls", 0, GROUPS, 0, HOUR_MS) == (3, 0)
    assert first_of(client, SLOW.log) == b"4-0"
    assert (lag(client, SLOW), lag(client, FAST)) == (6, 0)
    commit(client, slow, Commit(b"4-0", b"9-0", 9))
    assert (lag(client, SLOW), lag(client, FAST)) == (1, 0)
    release(client, [slow])
    assert grant(client, SLOW, "b").entries_read == 9


def test_young_chunks_stay_though_all_have_read_them(client: redis.Redis) -> None:
    now = now_ms(client)
    ids = [b"%d-0" % (now - 2 * HOUR_MS), b"%d-0" % (now - HOUR_MS // 2), b"%d-0" % now]
    push(client, FAST, ids)
    commit(client, grant(client, FAST).lease, Commit(b"0-0", ids[-1], 3))
    assert trim(client, "calls", 0, ["fast"], HOUR_MS, HOUR_MS) == (1, 0)
    assert first_of(client, FAST.log) == ids[1]
    assert lag(client, FAST) == 0


def test_a_topic_without_a_group_keeps_everything(client: redis.Redis) -> None:
    push(client, FAST, ids_of(1, 3))
    assert trim(client, "calls", 0, [], 0, 0) == (0, 0)
    assert trim(client, "calls", 7, GROUPS, 0, 0) == (0, 0)
    assert client.keys("*") == [FAST.log.encode()]


def test_results_go_by_age_and_their_last_id_stays(client: redis.Redis) -> None:
    push(client, FAST, ids_of(1, 3))
    lease = grant(client, FAST).lease
    entries = [(id_, {b"a": b"b"}) for id_ in ids_of(1, 3)]
    commit(client, lease, Commit(b"0-0", b"3-0", 3, entries, entries[1:2]))
    assert trim(client, "calls", 0, ["fast"], 0, 10**12 * 9) == (2, 0)
    assert trim(client, "calls", 0, ["fast"], 0, HOUR_MS) == (0, 4)
    assert client.xlen(FAST.out) == 0
    assert client.xinfo_stream(FAST.out)["last-generated-id"] == b"3-0"
    assert lag(client, FAST) == 0


@pytest.mark.parametrize("ages", [(-1, 0), (0, -1)])
def test_a_retention_below_zero(client: redis.Redis, ages: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="retention"):
        trim(client, "calls", 0, [], *ages)
