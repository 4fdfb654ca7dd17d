"""What `statebelt topics` shows: everything here only reads, except `drop_group` and `drop_dead`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import redis

from pipeline.broker.connection import raise_first, translate
from pipeline.broker.functions import Call, call_many
from pipeline.broker.keys import Keys, log_key
from pipeline.broker.topic import Topic, describe
from pipeline.errors import ConfigError

MAX_SCANNED = 200_000
"""Keys looked at, at most, to count live streams."""

_SCAN_COUNT = 1000


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A group on one partition. `owner` is None while nobody holds the lease; `epoch` is the last one granted.

    `streams` counts rows, so streams that are live or ended a moment ago.
    """

    group: str
    owner: str | None
    epoch: int
    lease_remaining_ms: int
    offset: bytes
    lag: int | None
    streams: int
    results: int
    dead: int


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One partition: `chunks` are kept in its log, `backlog` of them its slowest group has still to read."""

    partition: int
    chunks: int
    backlog: int
    groups: tuple[GroupStatus, ...]


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """A topic with its partitions. `streams_complete` is False when the server has more keys than were counted."""

    topic: Topic
    partitions: tuple[PartitionStatus, ...]
    streams_complete: bool


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A chunk put aside. `id` is the chunk's own; `fields` hold its reason and what was pushed."""

    partition: int
    id: bytes
    fields: dict[bytes, bytes]


def topics(client: redis.Redis) -> list[Topic]:
    """All topics of this server, by name.

    Raises:
        BrokerUnavailable: no answer; call again.
    """
    with translate():
        keys = {key.decode() for key in client.scan_iter(match="sb:*:meta", count=_SCAN_COUNT)}
    found = (describe(client, key[3:-5]) for key in sorted(keys) if re.fullmatch(r"sb:[^{}:]+:meta", key))
    return [topic for topic in found if topic is not None]


def status(client: redis.Redis, name: str, max_scanned: int = MAX_SCANNED) -> TopicStatus:
    """How a topic stands: groups, owners, lag, streams and dead letters of every partition.

    Not one instant: the server works on while it is read.

    Raises:
        ConfigError: there is no such topic.
        BrokerUnavailable: no answer; call again.
    """
    topic = describe(client, name)
    if topic is None:
        raise ConfigError(f"there is no topic {name!r} here; `statebelt topics` lists them")
    streams, complete = _count_rows(client, name, max_scanned)
    partitions = tuple(_partition(client, name, partition, streams) for partition in range(topic.partitions))
    return TopicStatus(topic, partitions, complete)


def _partition(client: redis.Redis, topic: str, partition: int, streams: Counter[str]) -> PartitionStatus:
    log = log_key(topic, partition)
    with translate():
        with client.pipeline(transaction=False) as pipe:
            pipe.xlen(log)
            pipe.xinfo_groups(log)
            chunks, infos = pipe.execute(raise_on_error=False)
            raise_first([chunks])
        if isinstance(infos, redis.ResponseError) and "no such key" in str(infos):
            return PartitionStatus(partition, 0, 0, ())
        raise_first([infos])
        groups = []
        for info in infos:
            keys = Keys(topic, info["name"].decode(), partition)
            with client.pipeline(transaction=False) as pipe:
                pipe.get(keys.lease)
                pipe.pttl(keys.lease)
                pipe.get(keys.epoch)
                pipe.xlen(keys.out)
                pipe.xlen(keys.dead)
                lease, remaining_ms, epoch, results, dead = raise_first(pipe.execute(raise_on_error=False))
            groups.append(
                GroupStatus(
                    group=keys.group,
                    owner=lease.decode().partition(" ")[2] if lease else None,
                    epoch=int(epoch or 0),
                    lease_remaining_ms=max(remaining_ms, 0),
                    offset=info["last-delivered-id"],
                    lag=info["lag"],
                    streams=streams[keys.row_prefix],
                    results=results,
                    dead=dead,
                )
            )
    backlog = call_many(client, [Call("sb_backlog", [log], [])])
    return PartitionStatus(partition, chunks, raise_first(backlog)[0], tuple(groups))


def _count_rows(client: redis.Redis, topic: str, max_scanned: int) -> tuple[Counter[str], bool]:
    """Rows by their key's prefix, and whether all keys were seen."""
    pattern = re.sub(r"([*?\[\]\\])", r"\\\1", f"sb:{{{topic}/") + "*}:*:row:*"
    counts: Counter[str] = Counter()
    cursor, scanned = 0, 0
    with translate():
        while scanned < max_scanned:
            cursor, keys = client.scan(cursor, match=pattern, count=_SCAN_COUNT)
            names = [key if isinstance(key, str) else key.decode() for key in keys]
            counts.update(name.partition(":row:")[0] + ":row:" for name in names)
            scanned += _SCAN_COUNT
            if cursor == 0:
                return counts, True
    return counts, False


def dead_letters(
    client: redis.Redis, topic: str, group: str, partitions: Sequence[int], after: bytes = b"0-0", count: int = 100
) -> list[DeadLetter]:
    """Dead letters after the id `after`, oldest first, at most `count` a partition.

    Raises:
        BrokerUnavailable: no answer; call again.
    """
    with translate(), client.pipeline(transaction=False) as pipe:
        for partition in partitions:
            pipe.xrange(Keys(topic, group, partition).dead, min=b"(" + after, count=count)
        replies = raise_first(pipe.execute(raise_on_error=False))
    return [
        DeadLetter(partition, id_, fields)
        for partition, entries in zip(partitions, replies, strict=True)
        for id_, fields in entries
    ]


def drop_dead(client: redis.Redis, topic: str, group: str, partition: int, ids: Sequence[bytes]) -> int:
    """Remove dead letters by id. Returns how many were there."""
    with translate():
        return int(client.xdel(Keys(topic, group, partition).dead, *ids)) if ids else 0


def drop_group(client: redis.Redis, topic: str, group: str, partitions: int) -> None:
    """Remove a group with its results, rows and dead letters, so that it no longer holds back trimming.

    Its workers must have stopped; one that still runs is fenced at its next commit.

    Raises:
        BrokerUnavailable: no answer; call again until it succeeds.
    """
    with translate():
        for partition in range(partitions):
            keys = Keys(topic, group, partition)
            if client.exists(keys.log):
                client.xgroup_destroy(keys.log, group)
            pattern = re.sub(r"([*?\[\]\\])", r"\\\1", keys.row_prefix) + "*"
            rows = list(client.scan_iter(match=pattern, count=_SCAN_COUNT))
            for i in range(0, len(rows), _SCAN_COUNT):
                client.unlink(*rows[i : i + _SCAN_COUNT])
            # The epoch stays: a group made again under this name must not be granted an epoch that a zombie holds.
            client.unlink(keys.out, keys.dead, keys.lease)
