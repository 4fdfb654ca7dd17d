"""What `statebelt topics` shows, and the end of a group: everything here only reads, except `drop_group`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import redis

from pipeline.broker.connection import no_key, raise_first, translate
from pipeline.broker.dead import DeadLetter as DeadLetter
from pipeline.broker.dead import dead_letters as dead_letters
from pipeline.broker.dead import drop_dead as drop_dead
from pipeline.broker.functions import Call, call_many
from pipeline.broker.keys import ROWS_SUFFIX, Keys, check_name, is_rows_group, log_key
from pipeline.broker.retention import marks_key
from pipeline.broker.topic import Topic, describe
from pipeline.errors import ConfigError

MAX_SCANNED = 200_000
"""Keys looked at, at most, to count live streams."""

_SCAN_COUNT = 1000


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A group on one partition. `owner` is None while nobody holds the lease; `epoch` is the last one granted.

    `streams` counts rows, so streams that are live or ended a moment ago. `lag` is None where Redis cannot know it.
    `unread_ms` is the age of the oldest chunk that the group has still to read, None when it has read all: so long
    it has held back trimming. `deployment` is False for a group that somebody made by hand, under a name that no
    worker could have: it has neither lease nor results.
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
    unread_ms: int | None = None
    deployment: bool = True


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
        if no_key(infos):
            return PartitionStatus(partition, 0, 0, ())
        raise_first([infos])
        deployed = [info for info in infos if not is_rows_group(info["name"])]
        groups = [_group(client, topic, partition, info, streams) for info in deployed]
    backlog = call_many(client, [Call("sb_backlog", [log], [])])
    return PartitionStatus(partition, chunks, raise_first(backlog)[0], tuple(groups))


def _group(client: redis.Redis, topic: str, partition: int, info: dict[str, Any], streams: Counter[str]) -> GroupStatus:
    name, offset = info["name"].decode(errors="replace"), info["last-delivered-id"]
    with client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.xrange(log_key(topic, partition), min=b"(" + offset, count=1)
        now, unread = raise_first(pipe.execute(raise_on_error=False))
    now_ms = now[0] * 1000 + now[1] // 1000
    unread_ms = max(0, now_ms - int(unread[0][0].split(b"-")[0])) if unread else None
    try:
        keys = Keys(topic, name, partition)
    except ConfigError:
        return GroupStatus(name, None, 0, 0, offset, info["lag"], 0, 0, 0, unread_ms, deployment=False)
    with client.pipeline(transaction=False) as pipe:
        pipe.get(keys.lease)
        pipe.pttl(keys.lease)
        pipe.get(keys.epoch)
        pipe.xlen(keys.out)
        pipe.xlen(keys.dead)
        lease, remaining_ms, epoch, results, dead = raise_first(pipe.execute(raise_on_error=False))
    return GroupStatus(
        group=name,
        owner=lease.decode().partition(" ")[2] if lease else None,
        epoch=int(epoch or 0),
        lease_remaining_ms=max(remaining_ms, 0),
        offset=offset,
        lag=info["lag"],
        streams=streams[keys.row_prefix],
        results=results,
        dead=dead,
        unread_ms=unread_ms,
    )


def _count_rows(client: redis.Redis, topic: str, max_scanned: int) -> tuple[Counter[str], bool]:
    """Rows by their key's prefix, and whether all keys were seen."""
    pattern = _literal(f"sb:{{{topic}/") + "*}:*:row:*"
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


def drop_group(client: redis.Redis, topic: str, group: str, partitions: int) -> None:
    """Remove a group with its results, rows and dead letters, so that it no longer holds back trimming.

    Its workers must have stopped; one that still runs is fenced at its next commit, and may make the group anew.

    Raises:
        BrokerUnavailable: no answer; call again until it succeeds.
        ConfigError: a name that is none.
    """
    check_name("group", group)
    rows: dict[int, list[bytes]] = {}
    tag = re.compile(re.escape(f"sb:{{{topic}/").encode() + rb"(\d+)" + re.escape(f"}}:{group}:row:").encode())
    pattern = _literal(f"sb:{{{topic}/") + "*" + _literal(f"}}:{group}:row:") + "*"
    with translate():
        for partition in range(partitions):
            keys = Keys(topic, group, partition)
            if client.exists(keys.log):
                client.xgroup_destroy(keys.log, group)
                client.xgroup_destroy(keys.log, group + ROWS_SUFFIX)
            # The epoch stays: a group made again under this name must not be granted an epoch that a zombie holds.
            client.unlink(keys.out, keys.dead, keys.lease, marks_key(keys))
        for key in client.scan_iter(match=pattern, count=_SCAN_COUNT):  # once for all partitions: it sees every key
            found = tag.match(key)
            if found is None:  # of a topic whose name begins as ours and goes on with a slash
                continue
            batch = rows.setdefault(int(found[1]), [])
            batch.append(key)
            if len(batch) == _SCAN_COUNT:
                client.unlink(*batch)
                batch.clear()
        for batch in rows.values():
            if batch:
                client.unlink(*batch)


def _literal(text: str) -> str:
    """Text as a pattern of SCAN that matches nothing else."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
