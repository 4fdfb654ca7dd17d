"""The register of living workers, and the lease table as those see it who want their share."""

from __future__ import annotations

import redis

from pipeline.broker.keys import Keys, workers_key
from pipeline.broker.lease import Granted, Held, acquire_many, holders, release
from pipeline.broker.members import Member, join, leave
from tests.harness import until


def test_all_that_live_are_told_and_who_leaves_is_not(client: redis.Redis) -> None:
    a, b = Member("host-1-a", 3, "f0", "00"), Member("host-2-b", 0, "f1", "00")
    assert join(client, "calls", "digits", a, 60_000) == [a]
    assert join(client, "calls", "digits", b, 60_000) == [b, a]
    again = Member("host-1-a", 2, "f0", "00")
    assert join(client, "calls", "digits", again, 60_000) == [again, b]
    assert join(client, "calls", "other", b, 60_000) == [b]
    leave(client, "calls", "digits", "host-2-b")
    leave(client, "calls", "digits", "host-2-b")
    assert join(client, "calls", "digits", again, 60_000) == [again]


def test_who_is_silent_is_forgotten_and_the_register_with_the_last(client: redis.Redis) -> None:
    key = workers_key("calls", "digits")
    dying, living = Member("dying", 1, "f", "00"), Member("living", 1, "f", "00")
    join(client, "calls", "digits", dying, 50)
    join(client, "calls", "digits", living, 60_000)
    until(lambda: join(client, "calls", "digits", living, 60_000) == [living], "the silent one is forgotten")
    assert client.hkeys(key) == [b"living"]
    assert 0 < client.pttl(key) <= 60_000
    leave(client, "calls", "digits", "living")
    join(client, "calls", "digits", dying, 50)
    until(lambda: not client.exists(key), "the register is gone with its last worker")


def test_what_is_no_register_entry_is_cleared(client: redis.Redis) -> None:
    client.hset(workers_key("calls", "digits"), "odd", "not a time")
    me = Member("me", 0, "f", "00")
    assert join(client, "calls", "digits", me, 60_000) == [me]
    assert client.hkeys(workers_key("calls", "digits")) == [b"me"]


def test_the_lease_table(client: redis.Redis) -> None:
    of = [Keys("calls", "digits", p) for p in range(4)]
    assert holders(client, of) == [None] * 4
    first = acquire_many(client, of[:2], "a", 60_000)
    assert all(isinstance(answer, Granted) for answer in first)
    second = acquire_many(client, of, "b", 60_000)
    assert [type(answer) for answer in second] == [Held, Held, Granted, Granted]
    assert holders(client, of) == ["a", "a", "b", "b"]
    release(client, [answer.lease for answer in first if isinstance(answer, Granted)])
    assert holders(client, of) == [None, None, "b", "b"]
