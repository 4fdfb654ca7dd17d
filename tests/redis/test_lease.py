"""One owner at a time, and an epoch that grows with every grant."""

from __future__ import annotations

from collections.abc import Sequence

import redis

from pipeline.broker.connection import connect
from pipeline.broker.keys import Keys
from pipeline.broker.lease import Granted, Held, Lease, acquire, new_owner, release, renew
from pipeline.broker.partition import Commit, commit
from pipeline.errors import BrokerUnavailable, ConfigError, Fenced, StatebeltError

from .helpers import LEASE_MS, grant, ids_of, push
from .proxy import Proxy

import pytest  # isort: skip


def expire(client: redis.Redis, keys: Keys) -> None:
    """As if the lease's time had passed."""
    assert client.pexpire(keys.lease, 0)


def test_first_grant_makes_the_group_and_starts_at_the_beginning(client: redis.Redis, keys: Keys) -> None:
    granted = grant(client, keys)
    assert (granted.lease.epoch, granted.offset, granted.entries_read) == (1, b"0-0", 0)
    assert client.get(keys.lease) == b"1 a"  # readable in redis-cli
    assert 0 < client.pttl(keys.lease) <= LEASE_MS
    assert client.xinfo_groups(keys.log)[0]["name"] == b"digits"


def test_a_held_partition_is_refused_and_names_its_owner(client: redis.Redis, keys: Keys) -> None:
    grant(client, keys, "the owner with spaces")
    held = acquire(client, keys, "b", LEASE_MS)
    assert isinstance(held, Held)
    assert (held.owner, held.epoch) == ("the owner with spaces", 1)
    assert 0 < held.remaining_ms <= LEASE_MS
    assert client.get(keys.epoch) == b"1"


def test_acquiring_again_renews_under_the_same_epoch(client: redis.Redis, keys: Keys) -> None:
    grant(client, keys)
    client.pexpire(keys.lease, 500)
    assert grant(client, keys).lease.epoch == 1
    assert client.pttl(keys.lease) > 500


def test_every_new_grant_has_a_new_epoch(client: redis.Redis, keys: Keys) -> None:
    first = grant(client, keys).lease
    expire(client, keys)
    assert grant(client, keys, "a").lease.epoch == 2  # even for the same owner: it lost the lease in between
    assert release(client, [first])[0] is not None
    assert renew(client, [(Lease(keys, "a", 2, LEASE_MS), b"0-0")]) == [None]


def test_renew_extends_and_release_frees_at_once(client: redis.Redis, keys: Keys) -> None:
    lease = grant(client, keys).lease
    client.pexpire(keys.lease, 500)
    assert renew(client, [(lease, b"0-0")]) == [None]
    assert client.pttl(keys.lease) > 500
    assert release(client, [lease]) == [None]
    assert not client.exists(keys.lease)
    assert grant(client, keys, "b").lease.epoch == 2


def test_renew_tells_an_owner_that_the_group_is_not_where_it_left_it(client: redis.Redis, keys: Keys) -> None:
    """A failover lost its last commit, say. Its lease is not renewed: what it holds is worth nothing."""
    push(client, keys, ids_of(1, 5))
    other = Keys("calls", "digits", 4)
    lease, good = grant(client, keys).lease, grant(client, other).lease
    assert commit(client, lease, Commit(b"0-0", b"5-0", 5)) is False
    client.xgroup_setid(keys.log, keys.group, "3-0", entries_read=3)
    client.pexpire(keys.lease, 500)
    error, none = renew(client, [(lease, b"5-0"), (good, b"0-0")])
    assert none is None
    assert isinstance(error, Fenced)
    assert "the offset is 3-0, not 5-0" in str(error)
    assert client.pttl(keys.lease) <= 500
    assert renew(client, [(lease, b"")]) == [None]  # a commit in doubt: the offset is one of two
    assert client.pttl(keys.lease) > 500
    assert renew(client, [(lease, b"3-0")]) == [None]
    for gone in (lambda: client.xgroup_destroy(keys.log, keys.group), lambda: client.delete(keys.log)):
        gone()
        assert "the group is gone" in str(renew(client, [(lease, b"3-0")])[0])


def renew_there(client: redis.Redis, leases: Sequence[Lease]) -> list[StatebeltError | None]:
    return renew(client, [(lease, b"0-0") for lease in leases])


@pytest.mark.parametrize("act", [renew_there, release])
def test_only_the_holder_renews_and_releases(client: redis.Redis, keys: Keys, act: object) -> None:
    stale = grant(client, keys).lease
    expire(client, keys)
    current = grant(client, keys, "b").lease
    foreign = Keys("calls", "digits", 4)
    other = grant(client, foreign, "c").lease
    outcomes = act(client, [stale, other])  # type: ignore[operator]
    assert isinstance(outcomes[0], Fenced)
    assert "2 b" in str(outcomes[0])
    assert outcomes[1] is None  # one that fails does not harm the others of the call
    assert client.get(keys.lease) == f"2 {current.owner}".encode()


def test_an_expired_lease_is_fenced_though_nobody_took_it(client: redis.Redis, keys: Keys) -> None:
    lease = grant(client, keys).lease
    expire(client, keys)
    assert "expired" in str(renew(client, [(lease, b"0-0")])[0])


def test_a_group_can_start_at_now(client: redis.Redis, keys: Keys) -> None:
    push(client, keys, ids_of(1, 5))
    granted = acquire(client, keys, "a", LEASE_MS, start="$")
    assert isinstance(granted, Granted)
    assert (granted.offset, granted.entries_read) == (b"5-0", 5)


def test_what_was_trimmed_before_the_group_counts_as_read(client: redis.Redis, keys: Keys) -> None:
    push(client, keys, ids_of(1, 10))
    client.xtrim(keys.log, minid="4-0", approximate=False)
    assert grant(client, keys).entries_read == 3


def test_a_lost_reply_of_acquire(client: redis.Redis, keys: Keys, proxy: Proxy) -> None:
    with connect(proxy.url) as through:
        through.ping()
        grant(through, Keys("calls", "digits", 0))  # the functions are loaded
        proxy.lose_reply()
        with pytest.raises(BrokerUnavailable):
            acquire(through, keys, "a", LEASE_MS)
        assert client.get(keys.lease) == b"1 a"  # it was granted
        assert grant(through, keys).lease.epoch == 1  # and to ask again gives that very grant


def test_foreign_keys_and_bad_arguments_are_refused_before_any_write(client: redis.Redis, keys: Keys) -> None:
    client.hset(keys.epoch, "x", "y")
    with pytest.raises(ConfigError, match="not ours"):
        acquire(client, keys, "a", LEASE_MS)
    assert client.keys("*") == [keys.epoch.encode()]
    client.flushall()
    for lease_ms, start in ((0, "0-0"), (-5, "0-0"), (1000, "x")):
        with pytest.raises(ConfigError, match="cannot acquire"):
            acquire(client, keys, "a", lease_ms, start)
    assert client.keys("*") == []


def test_owners_are_lives_of_processes() -> None:
    assert new_owner() != new_owner()
    assert new_owner("left").startswith("left-")
