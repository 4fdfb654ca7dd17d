"""The product, broken on purpose. Each is a change for a child; what the verifier must find is said in the tests.

A mutation of the server's side replaces lines of statebelt.lua; one of the worker's side replaces a function.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.recovery import child

FENCE = "if not holds(lease, owner, epoch) then return { 'FENCED', redis.call('GET', lease) or '' } end\n  local groups"
SAME_OFFSET = "if offset ~= old then return { 'CONFLICT', 'the offset is ' .. offset .. ', not ' .. old } end"
SLOWEST_GROUP = "if before(offset, keep) then keep = offset end"


@dataclass(frozen=True)
class Lua:
    """Other text in statebelt.lua, under a version of its own, as for any other version of it."""

    edits: tuple[tuple[str, str], ...]

    def text(self, original: str) -> str:
        for old, new in self.edits:
            assert original.count(old) == 1, f"{original.count(old)} times in statebelt.lua: {old}"
            original = original.replace(old, new)
        return original

    def __call__(self) -> None:
        def make(source: Callable[[], str]) -> Callable[[], str]:
            version = source().split("\n", 1)[0].rsplit("_", 1)[1]
            edited = self.text(source())
            changed = edited.replace(version, hashlib.sha256(edited.encode()).hexdigest()[:10])
            assert changed != source()
            return lambda: changed

        child.replace("pipeline.broker.functions:source", make)


NO_LEASE_CHECK = Lua(((FENCE, "local groups"),))
NO_OFFSET_CHECK = Lua(((SAME_OFFSET, ""),))
NO_FENCE = Lua((*NO_LEASE_CHECK.edits, *NO_OFFSET_CHECK.edits))
TRIM_REGARDLESS = Lua(((SLOWEST_GROUP, ""),))

Step = Literal["results", "rows", "offset"]


@dataclass(frozen=True)
class Separately:
    """Results, rows and offset by calls of their own, in this order; SIGKILL after `dies_after` of commit `nth`.

    chunk_ids: results under the ids of their chunks (a second one is then refused by Redis), or under fresh ones.
    """

    order: tuple[Step, Step, Step]
    dies_after: Step | None
    nth: int = 2
    chunk_ids: bool = True

    def __call__(self) -> None:
        import redis

        from pipeline.broker.partition import Outcome

        write, nth, made = self._write, self.nth, 0

        class Sending:
            def __init__(
                self, client: redis.Redis, commits: Sequence[tuple[Any, Any]], *_: object, **__: object
            ) -> None:
                nonlocal made
                made += 1
                self._count = len(commits)
                write(client, commits, made == nth)

            def outcomes(self) -> list[Outcome]:
                return [Outcome()] * self._count

        child.replace("pipeline.broker.partition:Sending", lambda _: Sending)

    def _write(self, client: Any, commits: Sequence[tuple[Any, Any]], dies: bool) -> None:
        for step in self.order:
            for lease, commit in commits:
                self._do(client, step, lease.keys, commit)
            if dies and step == self.dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
        for lease, _ in commits:
            client.pexpire(lease.keys.lease, lease.lease_ms)

    def _do(self, client: Any, step: Step, keys: Any, commit: Any) -> None:
        if step == "results":
            for id_, fields in commit.results:
                client.xadd(keys.out, fields, id=id_ if self.chunk_ids else "*")
        elif step == "rows":
            for stream, row, ttl_ms in commit.rows:
                client.set(keys.row_prefix + stream, row, px=ttl_ms)
        else:
            [group] = [g for g in client.xinfo_groups(keys.log) if g["name"] == keys.group.encode()]
            read = (group["entries-read"] or 0) + commit.entries
            client.xgroup_setid(keys.log, keys.group, commit.offset_after, entries_read=read)


def take_duplicates() -> None:
    """Without `seq`: a chunk that was seen is run again."""

    def make(admit: Callable[..., Any]) -> Callable[..., Any]:
        def admit_all(rows: Any, chunks: Sequence[Any], *rest: Any) -> Any:
            taken = [
                replace(chunk, seq=int(row["next_seq"])) if row["status"] and chunk.seq < row["next_seq"] else chunk
                for row, chunk in zip(rows, chunks, strict=True)
            ]
            return admit(rows, taken, *rest)

        return admit_all

    child.replace("pipeline.admission:admit", make)


def blank_rows() -> None:
    """A stream whose row is not on the belt begins anew, although Redis has its row."""

    def make(_: Callable[..., Any]) -> Callable[..., Any]:
        return lambda _client, wanted: {keys: [None] * len(streams) for keys, streams in wanted.items()}

    child.replace("pipeline.broker.partition:load_rows", make)


@dataclass(frozen=True)
class ShortRows:
    """Rows that Redis forgets after a millisecond: all of them, or the tombstones of ended streams alone."""

    tombstones_only: bool

    def __call__(self) -> None:
        def make(rows_of: Callable[..., Any]) -> Callable[..., Any]:
            def short(streams: Any, belt: Any, *more: Any) -> Any:
                found = rows_of(streams, belt, *more)
                whole = belt.layout.row_bytes
                spared = [self.tombstones_only and len(row) == whole for _, row, _ in found]
                return [(s, row, ttl if keep else 1) for (s, row, ttl), keep in zip(found, spared, strict=True)]

            return short

        child.replace("pipeline.task:_rows", make)


def rows_outlive_the_lease() -> None:
    """A worker that is fenced keeps the rows that it had."""
    child.replace("pipeline.belt:Belt.drop_partition", lambda _: lambda _belt, _partition: 0)
