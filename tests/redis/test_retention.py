"""Trimming follows the slowest group, and forgets no id."""

from __future__ import annotations

import pytest
import redis

from pipeline.broker import appender
from pipeline.broker.keys import Keys
from pipeline.broker.lease import release
from pipeline.broker.partition import Commit, commit
from pipeline.broker.reader import read
from pipeline.broker.retention import marks_key, trim
from pipeline.errors import ConfigError
from tests.harness import until

from .helpers import grant, ids_of, lag, offset, push

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
    commit(client, slow, Commit(b"4-0", b"9-0", 5))
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


def test_results_go_and_their_last_id_stays(client: redis.Redis) -> None:
    push(client, FAST, ids_of(1, 3))
    lease = grant(client, FAST).lease
    entries = [(id_, {b"a": b"b"}) for id_ in ids_of(1, 3)]
    commit(client, lease, Commit(b"0-0", b"3-0", 3, entries, entries[1:2]))
    assert trim(client, "calls", 0, ["fast"], 0, 0) == (2, 4)
    assert client.xlen(FAST.out) == 0
    assert client.xinfo_stream(FAST.out)["last-generated-id"] == b"3-0"
    assert lag(client, FAST) == 0


def test_results_are_as_old_as_their_publication_not_as_their_chunks(client: redis.Redis) -> None:
    """Chunks of 1970 that waited for a worker until now: their results are young, and stay for their retention."""
    push(client, FAST, ids_of(1, 6))
    lease = grant(client, FAST).lease
    entries = [(id_, {b"a": b"b"}) for id_ in ids_of(1, 6)]
    commit(client, lease, Commit(b"0-0", b"3-0", 3, entries[:3], entries[1:2]))
    retention_ms = 400
    began_ms = now_ms(client)
    assert trim(client, "calls", 0, ["fast"], HOUR_MS, retention_ms) == (2, 0)
    until(lambda: now_ms(client) - began_ms > retention_ms / 2, "half the retention")
    commit(client, lease, Commit(b"3-0", b"6-0", 3, entries[3:]))
    middle_ms = now_ms(client)
    gone = 0
    while not gone:
        assert now_ms(client) - began_ms < retention_ms + 5000
        gone = trim(client, "calls", 0, ["fast"], HOUR_MS, retention_ms)[1]
    assert now_ms(client) - began_ms >= retention_ms
    assert now_ms(client) - middle_ms < retention_ms, "too slow a machine to tell"
    assert (gone, first_of(client, FAST.out)) == (4, b"4-0")  # with the dead letter; what came later stays
    until(lambda: trim(client, "calls", 0, ["fast"], HOUR_MS, retention_ms)[1] == 3, "the others")
    assert now_ms(client) - middle_ms >= retention_ms


def test_marks_stay_few_and_expire_when_nobody_trims(client: redis.Redis) -> None:
    push(client, FAST, ids_of(1, 1))
    commit(client, grant(client, FAST).lease, Commit(b"0-0", b"1-0", 1, [(b"1-0", {b"a": b"b"})]))
    for _ in range(100):
        trim(client, "calls", 0, ["fast"], 0, HOUR_MS)
    now = now_ms(client)
    assert client.get(marks_key(FAST)).split()[1::2] == [b"1-0"]
    assert HOUR_MS < client.pttl(marks_key(FAST)) <= 2 * HOUR_MS + 60_000
    # A clock that was set back, and a group that was: what was marked then is no measure.
    client.set(marks_key(FAST), f"{now - 2 * HOUR_MS} 7-0 {now + HOUR_MS} 1-0")
    assert trim(client, "calls", 0, ["fast"], 0, HOUR_MS) == (0, 0)
    assert client.xlen(FAST.out) == 1
    ((ms, id_),) = [client.get(marks_key(FAST)).split()]
    assert (now <= int(ms) < now + HOUR_MS // 2, id_) == (True, b"1-0")
    every_step = " ".join(f"{now - i * HOUR_MS // 16 - 5} 0-{17 - i}" for i in range(16, 0, -1))
    client.set(marks_key(FAST), every_step)
    trim(client, "calls", 0, ["fast"], 0, HOUR_MS)
    assert len(client.get(marks_key(FAST)).split()) // 2 <= 17


class TestAGroupThatNobodyWorksFor:
    """It holds chunks back as long as an outage may last; then the log goes on without it."""

    def test_young_chunks_wait_for_it_and_old_ones_do_not(self, client: redis.Redis) -> None:
        now = now_ms(client)
        old = [b"%d-%d" % (now - 2 * HOUR_MS, i) for i in range(5)]
        young = [b"%d-%d" % (now - HOUR_MS // 2, i) for i in range(3)]
        push(client, SLOW, old + young)
        commit(client, grant(client, FAST).lease, Commit(b"0-0", young[-1], 8))
        slow = grant(client, SLOW).lease
        commit(client, slow, Commit(b"0-0", old[0], 1))
        # Alive, it keeps everything, however late it is.
        assert trim(client, "calls", 0, ["fast"], 0, HOUR_MS, HOUR_MS) == (0, 0)
        release(client, [slow])
        assert trim(client, "calls", 0, ["fast"], 0, HOUR_MS) == (0, 0)
        assert trim(client, "calls", 0, ["fast"], 0, HOUR_MS, HOUR_MS) == (5, 0)
        assert [id_ for id_, _ in client.xrange(SLOW.log)] == young
        # The retention is for everybody, so it can only be longer.
        assert trim(client, "calls", 0, ["fast"], HOUR_MS, HOUR_MS, 1) == (0, 0)

    def test_when_it_comes_back_its_world_is_consistent(self, client: redis.Redis) -> None:
        now = now_ms(client)
        old = [b"%d-%d" % (now - 2 * HOUR_MS, i) for i in range(5)]
        young = [b"%d-%d" % (now - HOUR_MS // 2, i) for i in range(3)]
        push(client, SLOW, old + young)
        commit(client, grant(client, FAST).lease, Commit(b"0-0", young[-1], 8))
        slow = grant(client, SLOW).lease
        commit(client, slow, Commit(b"0-0", old[1], 2))
        release(client, [slow])
        assert appender.backlog(client, "calls", 1) == {0: 6}
        trim(client, "calls", 0, ["fast"], 0, HOUR_MS, HOUR_MS)
        assert lag(client, SLOW) == 3  # not the six that it never read: half of them are gone
        assert appender.backlog(client, "calls", 1) == {0: 3}
        assert offset(client, SLOW) == old[1]  # before the first entry; its first read begins with what is there
        granted = grant(client, SLOW, "b")
        assert (granted.offset, granted.entries_read) == (old[1], 5)
        found = read(client, "calls", {0: granted.offset}, 100, 0)[0]
        assert [id_ for id_, _ in found] == young
        commit(client, granted.lease, Commit(old[1], young[1], 2))
        assert lag(client, SLOW) == 1
        commit(client, granted.lease, Commit(young[1], young[2], 1))
        assert lag(client, SLOW) == 0

    def test_all_of_its_chunks_are_gone(self, client: redis.Redis) -> None:
        push(client, SLOW, ids_of(1, 5))
        fast = grant(client, FAST).lease
        commit(client, fast, Commit(b"0-0", b"5-0", 5))
        release(client, [grant(client, SLOW).lease, fast])
        assert trim(client, "calls", 0, ["fast"], 0, HOUR_MS, HOUR_MS) == (5, 0)
        assert (lag(client, SLOW), lag(client, FAST)) == (0, 0)
        push(client, SLOW, ids_of(6, 7))
        granted = grant(client, SLOW, "b")
        assert lag(client, SLOW) == 2
        commit(client, granted.lease, Commit(b"0-0", b"7-0", 2))
        assert (lag(client, SLOW), lag(client, FAST)) == (0, 2)

    @pytest.mark.parametrize("name", ["mine:and {yours}", b"\xff\xfe", "*"])
    def test_a_group_that_is_no_deployment(self, client: redis.Redis, name: str | bytes) -> None:
        """Somebody reads our log through a group of his own: it has no lease, and is waited for as long."""
        push(client, FAST, ids_of(1, 5))
        client.xgroup_create(FAST.log, name, id="2-0")
        commit(client, grant(client, FAST).lease, Commit(b"0-0", b"5-0", 5))
        assert trim(client, "calls", 0, ["fast"], 0, HOUR_MS) == (1, 0)
        assert trim(client, "calls", 0, ["fast"], 0, HOUR_MS, HOUR_MS) == (3, 0)


@pytest.mark.parametrize("ages", [(-1, 0), (0, -1), (0, 0, -2)])
def test_a_retention_below_zero(client: redis.Redis, ages: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="retention"):
        trim(client, "calls", 0, [], *ages)
