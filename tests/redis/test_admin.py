"""What `statebelt topics` is told."""

from __future__ import annotations

import pytest
import redis

from pipeline.broker import admin, topic
from pipeline.broker.keys import Keys
from pipeline.broker.partition import Commit, commit
from pipeline.broker.retention import marks_key, trim
from pipeline.broker.topic import Topic
from pipeline.errors import ConfigError, Fenced

from .helpers import grant, ids_of, push

NAME = "calls [*]"  # characters that mean something to SCAN
KEYS = Keys(NAME, "digits", 1)


def fill(client: redis.Redis) -> None:
    topic.create(client, Topic(NAME, 8000.0, "int16", 1, 2))
    push(client, KEYS, ids_of(1, 10))
    results = [(b"1-0", {b"a": b"b"})]
    dead = [(b"2-0", {b"reason": b"oversize"}), (b"3-0", {b"reason": b"bad_seq"})]
    rows = [("s", b"x", 60_000), ("s:row:t", b"x", 60_000), ("u", b"x", 60_000)]
    commit(client, grant(client, KEYS).lease, Commit(b"0-0", b"4-0", 4, results, dead, rows))


def test_a_topic_as_it_stands(client: redis.Redis) -> None:
    fill(client)
    client.set("sb:{x/0}:meta", "not ours")
    assert [t.name for t in admin.topics(client)] == [NAME]
    status = admin.status(client, NAME)
    assert status.streams_complete
    assert status.partitions[0] == admin.PartitionStatus(0, 0, 0, ())
    partition = status.partitions[1]
    assert (partition.chunks, partition.backlog) == (10, 6)
    [group] = partition.groups
    assert (group.group, group.owner, group.epoch, group.offset, group.lag) == ("digits", "a", 1, b"4-0", 6)
    assert (group.streams, group.results, group.dead) == (3, 1, 2)
    assert group.lease_remaining_ms > 0
    client.delete(KEYS.lease)
    assert admin.status(client, NAME).partitions[1].groups[0].owner is None


def test_how_long_a_group_has_held_back_trimming(client: redis.Redis) -> None:
    fill(client)
    now_ms = client.time()[0] * 1000
    [group] = admin.status(client, NAME).partitions[1].groups
    assert group.unread_ms is not None
    assert abs(now_ms - group.unread_ms) < 60_000  # chunk 5-0, of 1970
    commit(client, grant(client, KEYS).lease, Commit(b"4-0", b"10-0", 6))
    [group] = admin.status(client, NAME).partitions[1].groups
    assert group.unread_ms is None


def test_a_group_with_a_name_that_no_worker_has(client: redis.Redis) -> None:
    fill(client)
    client.xgroup_create(KEYS.log, "mine:and {yours}", id="9-0")
    theirs = admin.status(client, NAME).partitions[1].groups[1]
    assert (theirs.group, theirs.deployment, theirs.owner) == ("mine:and {yours}", False, None)


def test_many_streams_are_dropped(client: redis.Redis) -> None:
    fill(client)
    client.mset({KEYS.row(f"s-{i}"): "x" for i in range(2500)})
    admin.drop_group(client, NAME, "digits", 2)
    assert client.keys("*:row:*") == []


def test_counting_streams_has_a_bound(client: redis.Redis) -> None:
    fill(client)
    client.mset({f"other-{i}": "x" for i in range(5000)})
    assert not admin.status(client, NAME, max_scanned=1000).streams_complete
    assert admin.status(client, NAME).partitions[1].groups[0].streams == 3


def test_no_such_topic(client: redis.Redis) -> None:
    with pytest.raises(ConfigError, match="no topic"):
        admin.status(client, "calls")
    assert admin.topics(client) == []


def test_dead_letters_are_read_and_dropped(client: redis.Redis) -> None:
    fill(client)
    letters = admin.dead_letters(client, NAME, "digits", range(2))
    assert [(d.partition, d.id, d.fields[b"reason"]) for d in letters] == [
        (1, b"2-0", b"oversize"),
        (1, b"3-0", b"bad_seq"),
    ]
    assert [d.id for d in admin.dead_letters(client, NAME, "digits", [1], after=b"2-0")] == [b"3-0"]
    assert admin.drop_dead(client, NAME, "digits", 1, [b"2-0", b"9-9"]) == 1
    assert admin.drop_dead(client, NAME, "digits", 1, []) == 0
    assert len(admin.dead_letters(client, NAME, "digits", [0, 1])) == 1


def test_a_dropped_group_leaves_its_epoch_only(client: redis.Redis) -> None:
    fill(client)
    lease = grant(client, KEYS).lease
    assert trim(client, NAME, 1, ["digits"], 0, 60_000) == (3, 0)
    assert client.exists(marks_key(KEYS))
    beside = [Keys(NAME, "digits-2", 1).row("s"), Keys(NAME + "1", "digits", 0).row("s")]
    others = [*beside, KEYS.log[:-2] + "digits2:out"]
    client.mset(dict.fromkeys(others, "x"))
    admin.drop_group(client, NAME, "digits", 2)
    left = {KEYS.log, KEYS.epoch, f"sb:{NAME}:meta", *others}
    assert {key.decode() for key in client.keys("*")} == left
    with pytest.raises(Fenced):
        commit(client, lease, Commit(b"4-0", b"5-0", 1))
    assert grant(client, KEYS, "a").lease.epoch == 2
