"""Leases: who may commit to a partition, and until when.

A lease is granted by the server, for a time, under an epoch that grows with every grant. Only commits that carry the
epoch and the owner of the lease that is in force take effect. A lease that ran out is lost even if nobody took it:
acquire again. An owner is one life of one process (`new_owner`): a restarted worker is another owner.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from pipeline.broker.connection import raise_first, translate
from pipeline.broker.functions import Call, call_many
from pipeline.broker.keys import Keys
from pipeline.broker.resp import Value
from pipeline.errors import BrokerUnavailable, ConfigError, Fenced, StatebeltError


def new_owner(name: str | None = None) -> str:
    """A name for this life of this process: `<host>-<pid>-<random>`, or `<name>-<random>`."""
    return f"{name or f'{socket.gethostname()}-{os.getpid()}'}-{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to commit to one partition, for `lease_ms` from its grant, and from each renewal and commit."""

    keys: Keys
    owner: str
    epoch: int
    lease_ms: int


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease, and where the group stands: `offset` is the id of the last chunk whose effects are committed.

    `entries_read` counts the log's entries up to it, -1 where Redis cannot know.
    `behind`: the rows hold only what chunks up to this id did; those after it, up to the offset, have to be replayed
    before anything else. Empty: the rows stand where the offset does.
    """

    lease: Lease
    offset: bytes
    entries_read: int
    behind: bytes = b""


@dataclass(frozen=True, slots=True)
class Held:
    """Another owner has the partition, for at most `remaining_ms` unless it renews."""

    owner: str
    epoch: int
    remaining_ms: int


def acquire(client: redis.Redis, keys: Keys, owner: str, lease_ms: int, start: str = "0-0") -> Granted | Held:
    """Take the partition if nobody holds it. To call it again while holding it renews the lease: same epoch.

    `start` is where a group that does not exist yet begins: an id, or `$` for chunks pushed from now on.

    Raises:
        BrokerUnavailable: no answer; call again.
        ConfigError: keys of another type, or arguments that cannot be.
    """
    return acquire_many(client, [keys], owner, lease_ms, start)[0]


def acquire_many(
    client: redis.Redis, wanted: Sequence[Keys], owner: str, lease_ms: int, start: str = "0-0"
) -> list[Granted | Held]:
    """`acquire` for several partitions in one round trip; some may be granted although it raises."""
    args: list[Value] = [owner, lease_ms, start]
    calls = [Call("sb_acquire", [keys.log, keys.lease, keys.epoch], [keys.group, *args]) for keys in wanted]
    replies = raise_first(call_many(client, calls))
    return [_answer(keys, owner, lease_ms, reply) for keys, reply in zip(wanted, replies, strict=True)]


def _answer(keys: Keys, owner: str, lease_ms: int, reply: Any) -> Granted | Held:
    kind, *rest = reply
    if kind == b"GRANTED":
        return Granted(Lease(keys, owner, int(rest[0]), lease_ms), rest[1], int(rest[2]), rest[3])
    if kind == b"HELD":
        return Held(rest[0].decode(errors="replace"), int(rest[1] or 0), int(rest[2]))
    raise ConfigError(f"cannot acquire partition {keys.partition} of {keys.topic!r}: {rest[0].decode()}")


def holders(client: redis.Redis, of: Sequence[Keys]) -> list[str | None]:
    """Who holds each partition now; None where nobody does.

    Raises:
        BrokerUnavailable: no answer; call again.
    """
    with translate(), client.pipeline(transaction=False) as pipe:
        for keys in of:
            pipe.get(keys.lease)
        replies = raise_first(pipe.execute(raise_on_error=False))
    return [reply.decode(errors="replace").partition(" ")[2] if reply else None for reply in replies]


def renew(client: redis.Redis, held: Sequence[tuple[Lease, bytes]]) -> list[StatebeltError | None]:
    """Renew leases in one round trip: each with the offset at which its owner left the group (empty: in doubt).

    For each: None, or `Fenced` (drop that partition: the lease is not in force, or the group is not where it was left),
    or why it failed. A commit renews its lease too: this is for partitions with nothing to commit. Never raises
    `BrokerUnavailable` itself: it stands in the list, for every lease.
    """
    calls = [
        Call("sb_renew", [x.keys.log, x.keys.lease], [x.keys.group, x.owner, x.epoch, x.lease_ms, offset])
        for x, offset in held
    ]
    return _each(client, [lease for lease, _ in held], calls)


def release(client: redis.Redis, leases: Sequence[Lease]) -> list[StatebeltError | None]:
    """Give leases back, so that others may take the partitions at once. Results as for `renew`."""
    return _each(client, leases, [Call("sb_release", [x.keys.lease], [x.owner, x.epoch]) for x in leases])


def fenced(lease: Lease, found: bytes) -> Fenced:
    """The error of an owner whose lease is not in force."""
    now = f"held as {found.decode(errors='replace')!r}" if found else "expired"
    return Fenced(
        f"partition {lease.keys.partition} of {lease.keys.topic!r}, group {lease.keys.group!r}: lease "
        f"'{lease.epoch} {lease.owner}' is not in force, it is {now}. Drop the partition; acquire it anew."
    )


def moved(lease: Lease, why: bytes) -> Fenced:
    """The error of an owner that finds the group elsewhere than it left it."""
    return Fenced(
        f"partition {lease.keys.partition} of {lease.keys.topic!r}, group {lease.keys.group!r} is not as this owner "
        f"left it: {why.decode(errors='replace')}. Drop it; acquire it anew."
    )


def _each(client: redis.Redis, leases: Sequence[Lease], calls: Sequence[Call]) -> list[StatebeltError | None]:
    try:
        replies = call_many(client, calls)
    except BrokerUnavailable as error:
        return [error] * len(leases)
    return [_outcome(lease, reply) for lease, reply in zip(leases, replies, strict=True)]


def _outcome(lease: Lease, reply: Any) -> StatebeltError | None:
    if isinstance(reply, StatebeltError):
        return reply
    if isinstance(reply, Exception):
        raise reply
    kind, *why = reply
    if kind == b"OK":
        return None
    return moved(lease, why[0]) if kind == b"CONFLICT" else fenced(lease, why[0])
