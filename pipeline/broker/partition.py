"""The one atomic act: results, dead letters, rows and offset of a batch, or nothing of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis

from pipeline.broker.connection import no_key, raise_first, translate
from pipeline.broker.functions import Call, Calls
from pipeline.broker.keys import Keys
from pipeline.broker.later import Later
from pipeline.broker.lease import Lease, fenced, moved
from pipeline.broker.reader import Reading
from pipeline.broker.resp import Command, Word
from pipeline.errors import BrokerUnavailable, ConfigError, StatebeltError

Fields = Mapping[bytes, bytes]
"""Fields of an entry, in order."""

MAX_DEAD_FIELDS = 64
MAX_DEAD_BYTES = 16 << 20
"""Bounds on a dead letter: what a hostile producer pushed must still fit into the commit that puts it aside."""


class Commit(NamedTuple):
    """What a batch did to one partition.

    Offsets and ids are Redis ids as read (`b"1700000000000-0"`). `results` and `dead` are in order of their ids, at
    most one entry a chunk in each (of 500 fields and 512 MiB), and lie within `offset_before < id <= offset_after`.
    `entries` is how many entries of the log were read for it, from the one to the other. A commit that does
    not move the offset may carry rows only. `rows` are (stream, bytes, TTL in ms); `drop_rows` are streams whose row
    goes away. `behind`: after this commit the rows of some streams hold only what chunks up to this id did (see
    `Granted`); empty: all rows are up to `offset_after`. `behind_before`: the same of the commit before this one.
    """

    offset_before: bytes
    offset_after: bytes
    entries: int
    results: Sequence[tuple[bytes, Fields]] = ()
    dead: Sequence[tuple[bytes, Fields]] = ()
    rows: Sequence[tuple[str, bytes | memoryview, int]] = ()
    drop_rows: Sequence[str] = ()
    behind: bytes = b""
    behind_before: bytes = b""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one commit.

    `error` is None when it is stored; `duplicate` tells that an earlier sending of it was. Else `Fenced` (drop the
    partition), `BrokerUnavailable` (send the same commit again) or `ConfigError` (nothing was written; a defect).
    """

    error: StatebeltError | None = None
    duplicate: bool = False

    def check(self) -> bool:
        """Raise the error, or return `duplicate`."""
        if self.error is not None:
            raise self.error
        return self.duplicate


_STORED, _OK = Outcome(), [b"OK"]


def _add_entries(args: list[Word], entries: Iterable[tuple[bytes, Fields]]) -> int:
    """Returns how many words more these are than arguments."""
    more = 0
    for id_, fields in entries:
        words = 2 * len(fields)
        args += (id_, words, fields if type(fields) is dict else dict(fields))
        more += words - 1
    return more


def bounded(fields: Fields) -> Fields:
    """A dead letter cut to its bounds; a field `cut` then says that it is not whole.

    >>> bounded({b"reason": b"oversize"})
    {b'reason': b'oversize'}
    """
    size_bytes = sum(len(name) + len(value) for name, value in fields.items())
    if len(fields) <= MAX_DEAD_FIELDS and size_bytes <= MAX_DEAD_BYTES:
        return fields
    each = MAX_DEAD_BYTES // (2 * MAX_DEAD_FIELDS)
    kept = {name[:each]: value[:each] for name, value in list(fields.items())[:MAX_DEAD_FIELDS]}
    kept[b"cut"] = f"{len(fields)} fields of {size_bytes} bytes".encode()
    return kept


def _call(lease: Lease, commit: Commit) -> Call:
    keys = lease.keys
    row = keys.row_prefix
    args: list[Word] = [
        keys.group,
        lease.owner,
        lease.epoch,
        lease.lease_ms,
        commit.offset_before,
        commit.offset_after,
        commit.entries,
        len(commit.results),
        len(commit.dead),
        len(commit.rows),
        len(commit.drop_rows),
        commit.behind,
        commit.behind_before,
    ]
    more = _add_entries(args, commit.results)
    if commit.dead:
        more += _add_entries(args, [(id_, bounded(fields)) for id_, fields in commit.dead])
    for _, row_bytes, ttl_ms in commit.rows:
        args += (row_bytes, ttl_ms)
    rows = [row + stream for stream, _, _ in commit.rows]
    rows += [row + stream for stream in commit.drop_rows]
    return Call("sb_commit", [keys.log, keys.out, keys.dead, keys.lease, *rows], args, len(args) + more)


class Sending:
    """Commits to several partitions, sent in one piece when this is made: `outcomes` waits for what became of them.

    Each succeeds or fails by itself. The lease is renewed. With `replicas`, an outcome is good only when so many
    replicas have the commit as well. Whatever the outcome, to send the same commit again is safe: what was stored is
    answered as a duplicate. `reading` is asked in the same breath, and answered where all is stored: else it may come
    of a server that is not the primary any more.
    """

    def __init__(
        self,
        client: redis.Redis,
        commits: Sequence[tuple[Lease, Commit]],
        replicas: int = 0,
        replicas_timeout_ms: int = 1000,
        reading: Reading | None = None,
    ) -> None:
        self._leases = [lease for lease, _ in commits]
        self._replicas, self._replicas_timeout_ms, self._reading = replicas, replicas_timeout_ms, reading
        self._away: BrokerUnavailable | None = None
        wait: list[Command] = [("WAIT", replicas, replicas_timeout_ms)] if replicas else []
        then = [*wait, *reading.commands] if reading else wait
        try:
            self._calls = Calls(client, [_call(lease, commit) for lease, commit in commits], then)
        except BrokerUnavailable as error:
            self._away = error

    def outcomes(self) -> list[Outcome]:
        """Of each commit; once."""
        try:
            if self._away is not None:
                raise self._away
            replies = self._calls.replies()
            replies, then = replies[: len(self._leases)], replies[len(self._leases) :]
            if self._replicas:
                _check_reached(then.pop(0), self._replicas, self._replicas_timeout_ms)
        except BrokerUnavailable as error:
            return [Outcome(error)] * len(self._leases)
        outcomes = [_outcome(lease, reply) for lease, reply in zip(self._leases, replies, strict=True)]
        if self._reading and all(outcome.error is None for outcome in outcomes):
            self._reading.answered(then)
        return outcomes

    def drop(self) -> None:
        """Let go of the outcomes: what became of the commits does not matter any more."""
        if self._away is None:
            self._calls.drop()


def commit_many(
    client: redis.Redis,
    commits: Sequence[tuple[Lease, Commit]],
    replicas: int = 0,
    replicas_timeout_ms: int = 1000,
    reading: Reading | None = None,
) -> list[Outcome]:
    """Commit to several partitions in one round trip: `Sending`, at once."""
    if not commits:
        return []
    return Sending(client, commits, replicas, replicas_timeout_ms, reading).outcomes()


def commit(client: redis.Redis, lease: Lease, commit: Commit) -> bool:
    """Commit to one partition. Returns whether it had been stored already.

    Raises:
        Fenced: the lease is not in force, or the log is not what this owner read. Nothing is written; drop it.
        BrokerUnavailable: unknown whether it is stored; send the same again while the lease lasts.
        ConfigError: nothing is written: a defect of the caller, or foreign keys.
    """
    return commit_many(client, [(lease, commit)])[0].check()


def _outcome(lease: Lease, reply: Any) -> Outcome:
    if reply == _OK:
        return _STORED
    if isinstance(reply, StatebeltError):
        return Outcome(reply)
    if isinstance(reply, Exception):
        raise reply
    kind, *why = reply
    if kind == b"DUP":
        return Outcome(duplicate=True)
    if kind == b"FENCED":
        return Outcome(fenced(lease, why[0]))
    if kind == b"CONFLICT":
        return Outcome(moved(lease, why[0]))
    where = f"partition {lease.keys.partition} of {lease.keys.topic!r}, group {lease.keys.group!r}"
    said = why[0].decode(errors="replace")
    return Outcome(ConfigError(f"{where}: a commit that cannot be: {said}. Nothing was written."))


def _check_reached(reached: Any, replicas: int, timeout_ms: int) -> None:
    # WAIT is about the writes of its own connection: it travels behind the commits, never by itself.
    if isinstance(reached, Exception):
        raise reached
    if reached < replicas:
        raise BrokerUnavailable(
            f"{reached} of {replicas} replicas confirmed the commit within {timeout_ms} ms: send it again, or bring "
            f"the replicas back."
        )


def load_rows(client: redis.Redis, wanted: Mapping[Keys, Sequence[str]]) -> dict[Keys, list[bytes | None]]:
    """The rows of streams, one MGET a partition, all in one round trip; None for a stream without one.

    Raises:
        BrokerUnavailable: no answer; call again.
    """
    asked = [(keys, streams) for keys, streams in wanted.items() if streams]
    with translate(), client.pipeline(transaction=False) as pipe:
        for keys, streams in asked:
            pipe.mget([keys.row_prefix + stream for stream in streams])
        replies = raise_first(pipe.execute(raise_on_error=False))
    rows: dict[Keys, list[bytes | None]] = {keys: [] for keys in wanted}
    rows.update(zip((keys for keys, _ in asked), replies, strict=True))
    return rows


def lags(client: redis.Redis, of: Sequence[Keys]) -> list[int]:
    """Chunks that the group has still to read, for each partition; an upper bound where Redis cannot know.

    None of a log that is gone: the server lost its data, and the owner finds out when it renews, or commits.

    Raises:
        BrokerUnavailable: no answer; call again.
    """
    return asked_lags(client, of).answer()


def asked_lags(client: redis.Redis, of: Sequence[Keys]) -> Later[list[int]]:
    """`lags`, whose answer is taken later."""

    def found(replies: list[Any]) -> list[int]:
        replies = raise_first([[] if no_key(reply) else reply for reply in replies])
        pairs = zip(of, replies[::2], replies[1::2], strict=True)
        return [_lag(keys.group.encode(), groups, length) for keys, groups, length in pairs]

    commands: list[Command] = []
    for keys in of:
        commands += [("XINFO", "GROUPS", keys.log), ("XLEN", keys.log)]
    return Later(client, [], commands, found)


def _lag(group: bytes, groups: Sequence[Mapping[bytes, Any]], length: int) -> int:
    lag = next((info[b"lag"] for info in groups if info[b"name"] == group), None)
    return int(length if lag is None else lag)
