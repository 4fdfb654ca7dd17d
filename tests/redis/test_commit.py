"""The commit: all of it or nothing, whoever asks and whatever is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.broker.connection import connect
from pipeline.broker.keys import Keys
from pipeline.broker.lease import Granted, release
from pipeline.broker.partition import MAX_DEAD_FIELDS, Commit, bounded, commit, commit_many, load_rows
from pipeline.broker.reader import Reading
from pipeline.errors import BrokerUnavailable, ConfigError, Fenced

from .helpers import LEASE_MS, everything, grant, ids_of, lag, offset, push
from .proxy import Proxy

MAX = 2**64 - 1


@pytest.fixture
def granted(client: redis.Redis, keys: Keys) -> Granted:
    """Ten chunks, and the lease."""
    push(client, keys, ids_of(1, 10))
    return grant(client, keys)


FIRST = Commit(
    offset_before=b"0-0",
    offset_after=b"4-0",
    entries=4,
    results=[(b"1-0", {b"stream": b"s", b"events": b"[]"}), (b"3-0", {b"stream": b"t"})],
    dead=[(b"2-0", {b"reason": b"oversize", b"data": bytes(range(256))})],
    rows=[("s", b"\x00\xff row", 50_000), ("t", b"", 1_000)],
)


def test_a_commit_writes_all_at_once(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    client.set(keys.row("gone"), "x")
    client.pexpire(keys.lease, 500)
    assert commit(client, granted.lease, FIRST._replace(drop_rows=["gone", "never there"])) is False
    assert client.xrange(keys.out) == [(b"1-0", {b"stream": b"s", b"events": b"[]"}), (b"3-0", {b"stream": b"t"})]
    assert client.xrange(keys.dead) == [(b"2-0", {b"reason": b"oversize", b"data": bytes(range(256))})]
    assert load_rows(client, {keys: ["t", "s", "gone"]}) == {keys: [b"", b"\x00\xff row", None]}
    assert 1_000 < client.pttl(keys.row("s")) <= 50_000
    assert 0 < client.pttl(keys.row("t")) <= 1_000
    assert (offset(client, keys), lag(client, keys)) == (b"4-0", 6)
    assert client.pttl(keys.lease) > 500


def test_the_lag_is_right_through_a_run_of_commits(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    before = granted.offset
    for after in (b"1-0", b"5-0", b"9-0", b"10-0"):
        count = int(after[:-2])
        commit(client, granted.lease, Commit(before, after, count - int(before[:-2])))
        before = after
        assert lag(client, keys) == 10 - count
    push(client, keys, ids_of(11, 13))
    assert lag(client, keys) == 3
    release(client, [granted.lease])
    assert grant(client, keys, "b").entries_read == 10


def test_the_same_commit_again_is_a_duplicate(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    commit(client, granted.lease, FIRST)
    client.pexpire(keys.lease, 500)
    stored = everything(client)
    assert commit(client, granted.lease, FIRST) is True
    assert everything(client) == stored
    assert client.pttl(keys.lease) > 500


def test_a_lost_reply_then_the_same_commit(client: redis.Redis, keys: Keys, granted: Granted, proxy: Proxy) -> None:
    with connect(proxy.url) as through:
        through.ping()
        proxy.lose_reply()
        with pytest.raises(BrokerUnavailable, match="unknown"):
            commit(through, granted.lease, FIRST)
        assert proxy.lost.is_set()
        assert client.xlen(keys.out) == 2  # executed once, by nobody's retry twice
        assert commit(through, granted.lease, FIRST) is True
        assert client.xlen(keys.out) == 2


def test_a_stale_owner_is_fenced_and_leaves_no_trace(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    client.pexpire(keys.lease, 0)
    stored = everything(client)
    with pytest.raises(Fenced, match="expired"):
        commit(client, granted.lease, FIRST)
    assert everything(client) == stored
    other = grant(client, keys, "b")
    stored = everything(client)
    for lease in (granted.lease, replace(granted.lease, epoch=2), replace(other.lease, epoch=1)):
        with pytest.raises(Fenced, match="2 b"):
            commit(client, lease, FIRST)
    assert everything(client) == stored
    assert commit(client, other.lease, FIRST) is False
    with pytest.raises(Fenced):  # even what would be a duplicate
        commit(client, granted.lease, FIRST)


def test_a_released_lease_commits_nothing(client: redis.Redis, granted: Granted) -> None:
    release(client, [granted.lease])
    with pytest.raises(Fenced):
        commit(client, granted.lease, FIRST)


def test_a_wrong_offset_is_refused(client: redis.Redis, granted: Granted) -> None:
    commit(client, granted.lease, FIRST)
    stored = everything(client)
    for before, after in ((b"3-0", b"6-0"), (b"5-0", b"6-0"), (b"0-0", b"5-0")):
        with pytest.raises(Fenced, match="the offset is 4-0"):
            commit(client, granted.lease, Commit(before, after, 6))
    assert everything(client) == stored


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "result ids equal": ({"results": [(b"1-0", {b"a": b"b"}), (b"1-0", {b"a": b"b"})]}, "does not rise"),
    "result ids falling": ({"results": [(b"3-0", {b"a": b"b"}), (b"2-0", {b"a": b"b"})]}, "does not rise"),
    "dead ids falling": ({"dead": [(b"3-0", {b"a": b"b"}), (b"2-0", {b"a": b"b"})]}, "does not rise"),
    "result beyond the offset": ({"results": [(b"4-1", {b"a": b"b"})]}, "beyond the new offset"),
    "dead letter beyond the offset": ({"dead": [(b"9-0", {b"a": b"b"})]}, "beyond the new offset"),
    "result at the old offset": ({"results": [(b"0-0", {b"a": b"b"})]}, "does not rise"),
    "id with a leading zero": ({"results": [(b"01-0", {b"a": b"b"})]}, "canonical"),
    "id without a sequence": ({"results": [(b"1", {b"a": b"b"})]}, "canonical"),
    "id beyond 64 bits": ({"results": [(b"18446744073709551616-0", {b"a": b"b"})]}, "canonical"),
    "id is a star": ({"results": [(b"*", {b"a": b"b"})]}, "canonical"),
    "no fields": ({"results": [(b"1-0", {})]}, "number of fields"),
    "too many fields": ({"results": [(b"1-0", {b"%d" % i: b"" for i in range(501)})]}, "number of fields"),
    "ttl of zero": ({"rows": [("s", b"x", 0)]}, "TTL"),
    "ttl below zero": ({"rows": [("s", b"x", -1)]}, "TTL"),
    "ttl that overflows": ({"rows": [("s", b"x", 2**62)]}, "TTL"),
    "offset backwards": ({"offset_before": b"4-0", "offset_after": b"3-0"}, "the offset is 0-0"),
    "offset that is no id": ({"offset_after": b"x"}, "canonical id"),
    "count that is none": ({"entries": -7}, "not a count"),
    "entries without a new offset": ({"offset_after": b"0-0"}, "without a new offset"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_with_nothing_written(client: redis.Redis, granted: Granted, case: str) -> None:
    changes, why = BAD[case]
    stored = everything(client)
    with pytest.raises((ConfigError, Fenced), match=why):
        commit(client, granted.lease, FIRST._replace(**changes))
    assert everything(client) == stored
    assert commit(client, granted.lease, FIRST) is False  # and the partition can go on


@pytest.mark.parametrize("name", ["out", "dead"])
def test_a_log_that_is_ahead_is_refused(client: redis.Redis, keys: Keys, granted: Granted, name: str) -> None:
    client.xadd(getattr(keys, name), {"a": "b"}, id="3-0")
    client.xtrim(getattr(keys, name), maxlen=0, approximate=False)  # trimming does not forget the last id
    stored = everything(client)
    with pytest.raises(ConfigError, match="does not rise above 3-0"):
        commit(client, granted.lease, FIRST)
    assert everything(client) == stored


@pytest.mark.parametrize("name", ["log", "out", "dead", "lease"])
def test_a_key_of_another_type_is_refused(client: redis.Redis, keys: Keys, granted: Granted, name: str) -> None:
    client.delete(getattr(keys, name))
    client.lpush(getattr(keys, name), "foreign")
    stored = everything(client)
    with pytest.raises(ConfigError, match="another type"):
        commit(client, granted.lease, FIRST)
    assert everything(client) == stored


def test_a_log_or_group_that_is_gone(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    client.xgroup_destroy(keys.log, "digits")
    stored = everything(client)
    with pytest.raises(Fenced, match="group is gone"):
        commit(client, granted.lease, FIRST)
    assert everything(client) == stored
    client.delete(keys.log)
    with pytest.raises(Fenced, match="log is gone"):
        commit(client, granted.lease, FIRST)


def test_a_log_that_lost_its_tail_is_noticed(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    """A failover: chunks 11 and 12 were read, then lost; another took an id between. None may be skipped."""
    survived = client.dump(keys.log)
    push(client, keys, ids_of(11, 12))
    client.restore(keys.log, 0, survived, replace=True)
    stored = everything(client)
    with pytest.raises(Fenced, match="lost its tail"):
        commit(client, granted.lease, Commit(b"0-0", b"12-0", 12))
    assert everything(client) == stored
    push(client, keys, [b"11-5", b"13-0"])
    stored = everything(client)
    with pytest.raises(Fenced, match="lost its tail"):
        commit(client, granted.lease, Commit(b"0-0", b"12-0", 12))
    assert everything(client) == stored


def test_an_emptied_log_that_lost_its_tail_is_noticed(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    client.xtrim(keys.log, maxlen=0, approximate=False)
    with pytest.raises(Fenced, match="lost its tail"):
        commit(client, granted.lease, Commit(b"0-0", b"12-0", 12))
    assert commit(client, granted.lease, FIRST) is False  # what lies before its last id was trimmed, not lost


def test_a_result_of_a_chunk_before_the_offset_is_refused(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    commit(client, granted.lease, Commit(b"0-0", b"4-0", 4))
    for kind in ("results", "dead"):
        late = Commit(b"4-0", b"6-0", 2, **{kind: [(b"4-0", {b"a": b"b"})]})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="does not rise above 4-0"):
            commit(client, granted.lease, late)
    assert not client.exists(keys.out, keys.dead)


def test_chunks_dropped_unread_after_the_read_do_not_fence(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    client.xtrim(keys.log, minid="6-0", approximate=False)
    assert commit(client, granted.lease, FIRST) is False
    assert lag(client, keys) == 5
    push(client, keys, ids_of(11, 12))
    commit(client, granted.lease, Commit(b"4-0", b"12-0", 7))
    assert lag(client, keys) == 0


def test_chunks_dropped_unread_before_the_read_do_not_count_as_waiting(
    client: redis.Redis, keys: Keys, granted: Granted
) -> None:
    """Also while no commit reaches the end of the log, as under load: producers would be held back for nothing."""
    commit(client, granted.lease, Commit(b"0-0", b"2-0", 2))
    client.xtrim(keys.log, minid="6-0", approximate=False)
    commit(client, granted.lease, Commit(b"2-0", b"8-0", 3))
    assert lag(client, keys) == 2
    commit(client, granted.lease, Commit(b"8-0", b"9-0", 1))
    assert lag(client, keys) == 1


@pytest.mark.parametrize("entries", [4, 9, 12])
def test_at_the_end_of_the_log_nothing_waits_whatever_was_counted(
    client: redis.Redis, keys: Keys, granted: Granted, entries: int
) -> None:
    commit(client, granted.lease, Commit(b"0-0", b"1-0", 1))
    commit(client, granted.lease, Commit(b"1-0", b"10-0", entries))
    assert lag(client, keys) == 0


def test_the_lag_is_right_after_a_failover_that_lost_what_was_read(client: redis.Redis, keys: Keys) -> None:
    """The owner read a chunk that the new master never had: it counts for nothing there."""
    lease = grant(client, keys).lease
    replica = client.dump(keys.log)
    push(client, keys, ids_of(2, 2))
    client.restore(keys.log, 0, replica, replace=True)
    push(client, keys, ids_of(3, 3))
    commit(client, lease, Commit(b"0-0", b"2-0", 1))
    assert lag(client, keys) == 1
    push(client, keys, ids_of(4, 6))
    commit(client, lease, Commit(b"2-0", b"5-0", 3))
    assert lag(client, keys) == 1


def test_rows_alone_may_be_written_again_and_again(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    rows = Commit(b"0-0", b"0-0", 0, rows=[("s", b"x", 1000)])
    assert commit(client, granted.lease, rows) is False
    assert commit(client, granted.lease, rows) is False
    assert (offset(client, keys), lag(client, keys)) == (b"0-0", 10)


def test_ten_thousand_results_and_rows(client: redis.Redis, keys: Keys) -> None:
    ids = ids_of(1, 10_000)
    push(client, keys, ids)
    big = Commit(
        b"0-0",
        ids[-1],
        10_000,
        results=[(id_, {b"stream": b"s%d" % i, b"seq": b"0", b"events": b"[]"}) for i, id_ in enumerate(ids)],
        dead=[(id_, {b"reason": b"r"}) for id_ in ids],
        rows=[(f"s{i}", b"%d" % i, 60_000) for i in range(10_000)],
    )
    assert commit(client, grant(client, keys).lease, big) is False
    assert (client.xlen(keys.out), client.xlen(keys.dead), lag(client, keys)) == (10_000, 10_000, 0)
    streams = [f"s{i}" for i in range(10_000)]
    assert load_rows(client, {keys: streams})[keys] == [b"%d" % i for i in range(10_000)]


def test_an_entry_of_five_hundred_fields(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    fields = {b"%d" % i: b"v" for i in range(500)}
    commit(client, granted.lease, FIRST._replace(results=[(b"1-0", fields)]))
    assert client.xrange(keys.out) == [(b"1-0", fields)]


def test_a_hostile_dead_letter_is_cut_to_its_bounds(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    hostile = {b"reason": b"unknown_field", **{b"%d" % i: b"v" for i in range(5000)}}
    commit(client, granted.lease, FIRST._replace(dead=[(b"2-0", hostile)]))
    [(_, fields)] = client.xrange(keys.dead)
    assert fields[b"reason"] == b"unknown_field"
    assert fields[b"cut"].startswith(b"5001 fields")
    assert len(fields) == MAX_DEAD_FIELDS + 1
    huge = bounded({b"reason": b"oversize", b"data": bytes(20 << 20)})
    assert sum(map(len, huge.values())) < 1 << 20


def test_commits_of_one_call_succeed_and_fail_alone(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    others = [Keys("calls", "digits", p) for p in (4, 5)]
    for other in others:
        push(client, other, ids_of(1, 10))
    fenced, bad = (grant(client, other).lease for other in others)
    client.pexpire(others[0].lease, 0)
    broken = FIRST._replace(rows=[("s", b"", 0)])
    outcomes = commit_many(client, [(fenced, FIRST), (granted.lease, FIRST), (bad, broken)])
    assert [type(o.error) for o in outcomes] == [Fenced, type(None), ConfigError]
    assert client.xlen(keys.out) == 2
    assert not client.exists(others[0].out, others[1].out)


def test_what_follows_is_read_with_a_commit_that_is_stored(client: redis.Redis, keys: Keys, granted: Granted) -> None:
    """And not with one that is refused: who knows what server that is, and whose the partition."""
    refused, read = (Reading(keys.topic, {keys.partition: b"4-0"}, 3) for _ in range(2))
    push(client, other := Keys(keys.topic, keys.group, keys.partition + 1), ids_of(1, 10))
    fenced = grant(client, other).lease
    client.pexpire(other.lease, 0)
    commit_many(client, [(granted.lease, FIRST), (fenced, FIRST)], reading=refused)
    assert refused.take() == {}
    assert commit_many(client, [(granted.lease, FIRST)], reading=read)[0].check() is True
    assert {p: [id_ for id_, _ in entries] for p, entries in read.take().items()} == {
        keys.partition: [b"5-0", b"6-0", b"7-0"]
    }
    assert (read.take(), read.crosses_slots) == ({}, False)


def test_a_server_that_is_away_fails_all_outcomes(client: redis.Redis, granted: Granted) -> None:
    with connect("unix:///nowhere/at/all.sock") as nobody:
        outcomes = commit_many(nobody, [(granted.lease, FIRST), (granted.lease, FIRST)])
    assert [type(o.error) for o in outcomes] == [BrokerUnavailable] * 2
    assert commit_many(client, []) == []


def test_too_few_replicas_is_unavailable_and_may_be_sent_again(client: redis.Redis, granted: Granted) -> None:
    [outcome] = commit_many(client, [(granted.lease, FIRST)], replicas=1, replicas_timeout_ms=10)
    assert isinstance(outcome.error, BrokerUnavailable)
    assert "0 of 1 replicas" in str(outcome.error)
    assert commit(client, granted.lease, FIRST) is True


def test_a_user_who_may_not_do_all_of_it_does_none(client: redis.Redis, url: str, granted: Granted) -> None:
    client.execute_command("ACL", "SETUSER", "half", "on", ">pw", "~*", "+@all", "-xgroup|setid", "-function|load")
    try:
        with connect(url) as half:
            commit(half, granted.lease, FIRST)  # as the default user
            half.execute_command("AUTH", "half", "pw")
            stored = everything(client)
            with pytest.raises(ConfigError, match="may not run XGROUP"):
                commit(half, granted.lease, Commit(b"4-0", b"5-0", 1, results=[(b"5-0", {b"a": b"b"})]))
            assert everything(client) == stored
    finally:
        client.acl_deluser("half")


def pair(id_: bytes) -> tuple[int, int]:
    ms, _, seq = id_.partition(b"-")
    return int(ms), int(seq)


half = st.one_of(
    st.integers(0, MAX),
    st.sampled_from([0, 1, 9, 10, 99, 100, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 10**19, MAX - 1, MAX]),
)
redis_id = st.tuples(half, half).filter(lambda x: x > (0, 0)).map(lambda x: b"%d-%d" % x)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(last=redis_id, id_=redis_id)
@example(b"9007199254740992-0", b"9007199254740993-0")  # equal as doubles
@example(b"9-0", b"10-0")
@example(b"1-9007199254740993", b"1-9007199254740992")
@example(b"5-5", b"5-5")
def test_ids_compare_as_pairs_of_64_bit_numbers(client: redis.Redis, keys: Keys, last: bytes, id_: bytes) -> None:
    client.flushall()
    top = b"%d-%d" % (MAX, MAX)
    push(client, keys, [top])
    client.xadd(keys.out, {"a": "b"}, id=last)
    lease = grant(client, keys).lease
    one = Commit(b"0-0", top, 1, results=[(id_, {b"a": b"b"})])
    if pair(id_) > pair(last):
        assert commit(client, lease, one) is False
        assert client.xrevrange(keys.out, count=1)[0][0] == id_
    else:
        with pytest.raises(ConfigError, match="does not rise"):
            commit(client, lease, one)
        assert client.xlen(keys.out) == 1
    assert lease.lease_ms == LEASE_MS
