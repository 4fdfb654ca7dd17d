"""Reading logs: plain XREAD, from ids that the caller keeps; and chunks for a worker.

Consumer-group reading (XREADGROUP) would hand one stream's chunks to several consumers, out of order.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from functools import lru_cache
from typing import Any

import redis
import redis.asyncio

from pipeline.broker.asked import AskedApart, round_trip
from pipeline.broker.connection import raise_first, timeout_ms, translate
from pipeline.broker.entries import Entry, Raw, fields_of
from pipeline.broker.failover import ASK, History
from pipeline.broker.keys import log_key
from pipeline.broker.resp import Command
from pipeline.errors import ConfigError

_POLL_S = 0.005  # only on a cluster, where no single call can wait on several slots

_CONNECTIONS = 4
"""Over how many a reading is spread at most that goes out by itself."""

_AT_A_TIME = 64_000
"""So much of an answer, a little less than 64 KB, a server sends before it serves others."""


def _command(positions: Mapping[str, bytes], count: int, block_ms: int) -> list[Any]:
    command: list[Any] = ["XREAD", "COUNT", count]
    if block_ms > 0:  # to Redis, 0 means for ever; here it means not at all
        command += ["BLOCK", block_ms]
    return [*command, "STREAMS", *positions, *positions.values()]


def _found(reply: Any) -> dict[str, list[Raw]]:
    return {key.decode(): [raw for raw in entries if raw[1] is not None] for key, entries in (reply or {}).items()}


def _entries(found: Mapping[str, Sequence[Any]]) -> dict[str, list[Entry]]:
    return {key: [(id_, fields_of(flat)) for id_, flat in entries] for key, entries in found.items()}


def _check(client: redis.Redis | redis.asyncio.Redis, block_ms: int) -> None:
    limit_ms = timeout_ms(client)
    if block_ms >= limit_ms:
        raise ConfigError(
            f"a read that blocks for {block_ms} ms would outlast the socket timeout of {limit_ms:.0f} ms; "
            f"block for less, or connect with a longer timeout"
        )


def read_keys(
    client: redis.Redis, positions: Mapping[str, bytes], count: int, block_ms: int, history: History | None = None
) -> dict[str, list[Entry]]:
    """`read_raw`, fields as dictionaries."""
    return _entries(read_raw(client, positions, count, block_ms, history))


def read_raw(
    client: redis.Redis, positions: Mapping[str, bytes], count: int, block_ms: int, history: History | None = None
) -> dict[str, list[Raw]]:
    """Entries after the given ids, at most `count` a key, of several logs in one call.

    Waits up to `block_ms` (0: not at all) for the first one. Keys without new entries are left out. On a cluster,
    where logs lie in different slots, a pipeline of reads, repeated until something is there. What is read of a server
    with another `history` than is known is not returned: the server is asked behind the read, for a primary may
    become a replica, and get other data, under a connection that stays.

    Raises:
        BrokerUnavailable: no answer; read again, a read changes nothing.
        ConfigError: `block_ms` outlasts the client's socket timeout, or a key is no log.
    """
    if not positions:
        return {}
    _check(client, block_ms)
    command = _command(positions, count, block_ms)
    with translate():
        reply, *told = round_trip(client, [command] if history is None else [command, ASK])
        if history is not None:
            history.check(*told)
        if not isinstance(reply, redis.exceptions.ClusterCrossSlotError):
            if isinstance(reply, Exception):
                raise reply
            return _found(reply)
        deadline_s = time.monotonic() + block_ms / 1000
        while True:
            with client.pipeline(transaction=False) as pipe:
                for each in _apart(positions, count):
                    pipe.execute_command(*each)  # type: ignore[no-untyped-call]
                found = _merged(raise_first(pipe.execute(raise_on_error=False)))
            if found or time.monotonic() >= deadline_s:
                return found
            time.sleep(_POLL_S)


async def read_keys_async(
    client: redis.asyncio.Redis,
    positions: Mapping[str, bytes],
    count: int,
    block_ms: int,
    history: History | None = None,
) -> dict[str, list[Entry]]:
    """`read_keys` for asyncio."""
    if not positions:
        return {}
    _check(client, block_ms)
    command = _command(positions, count, block_ms)
    with translate():
        async with client.pipeline(transaction=False) as pipe:
            pipe.execute_command(*command)
            if history is not None:
                pipe.execute_command(*ASK)
            reply, *told = await pipe.execute(raise_on_error=False)
        if history is not None:
            history.check(*told)
        if not isinstance(reply, redis.exceptions.ClusterCrossSlotError):
            if isinstance(reply, Exception):
                raise reply
            return _entries(_found(reply))
        deadline_s = time.monotonic() + block_ms / 1000
        while True:
            async with client.pipeline(transaction=False) as pipe:
                for each in _apart(positions, count):
                    pipe.execute_command(*each)
                found = _entries(_merged(raise_first(await pipe.execute(raise_on_error=False))))
            if found or time.monotonic() >= deadline_s:
                return found
            await asyncio.sleep(_POLL_S)


def _apart(positions: Mapping[str, bytes], count: int) -> list[list[Any]]:
    return [_command({key: id_}, count, 0) for key, id_ in positions.items()]


def _merged(replies: Sequence[Any]) -> dict[str, list[Raw]]:
    return {key: entries for reply in replies for key, entries in _found(reply).items()}


def read(
    client: redis.Redis, topic: str, offsets: Mapping[int, bytes], count: int, block_ms: int, *, enough: int = 0
) -> dict[int, list[Raw]]:
    """Chunks after the offset of each partition, at most `count` a partition.

    Partitions without new chunks are left out. Waits, and raises, as `read_raw`. Where it gets fewer than `enough`
    chunks, all of one partition, it looks once more: a read that waited is answered with the first push that comes, and
    what other producers push at that moment would be a small batch of its own. Nothing is waited for.
    """
    partitions = {log_key(topic, partition): partition for partition in offsets}
    positions = {key: offsets[partition] for key, partition in partitions.items()}
    found = read_raw(client, positions, count, block_ms)
    sizes = [len(entries) for entries in found.values()]
    if len(found) == 1 and 0 < sum(sizes) < enough and max(sizes) < count:
        positions |= {key: entries[-1][0] for key, entries in found.items()}
        for key, entries in read_raw(client, positions, count - max(sizes), 0).items():
            found.setdefault(key, []).extend(entries)
    return {partitions[key]: entries for key, entries in found.items()}


@lru_cache(64)
def _logs(topic: str, partitions: tuple[int, ...]) -> Mapping[str, int]:
    """The keys of these partitions' logs, and whose each is: a worker asks for the same ones in every turn."""
    return {log_key(topic, partition): partition for partition in partitions}


class Reading:
    """A read that waits for nothing, for whoever sends its commands; what is there is taken later. No error is told
    here: who reads in its stead meets it again.

    Args:
        offsets: after which id of each partition.
        count: at most so many chunks a partition.
        apart: a question for each partition; for a cluster, where they lie in different slots.
    Attributes:
        crosses_slots: it was not answered, for want of `apart`.
    """

    def __init__(self, topic: str, offsets: Mapping[int, bytes], count: int, *, apart: bool = False) -> None:
        self.offsets, self.count, self.crosses_slots = dict(offsets), count, False
        self._partitions = _logs(topic, tuple(offsets))
        self._positions = dict(zip(self._partitions, offsets.values(), strict=True))
        self._apart = apart
        self._replies: Sequence[Any] = ()

    @property
    def commands(self) -> Sequence[Command]:
        """What to send, where it goes over one connection."""
        return self._commands(self._positions)

    def _commands(self, positions: Mapping[str, bytes]) -> Sequence[Command]:
        return _apart(positions, self.count) if self._apart else [_command(positions, self.count, 0)]

    def answered(self, replies: Sequence[Any]) -> None:
        """What `commands` were replied, in order."""
        self._replies = replies

    def take(self) -> dict[int, list[Raw]]:
        """What was found, once; nothing, where it was not answered."""
        replies, self._replies = self._replies, ()
        refused = (redis.exceptions.ClusterCrossSlotError, ConfigError)  # the second is ours for the first
        self.crosses_slots = any(isinstance(reply, refused) for reply in replies)
        answers = [reply for reply in replies if not isinstance(reply, refused)]
        if any(isinstance(reply, Exception) for reply in answers):  # else those that are answered would hide it
            return {}
        found = _merged(answers)
        return {self._partitions[key]: entries for key, entries in found.items()}


class Ahead(Reading):
    """A reading that goes out by itself, now, over several connections: until it is answered there is other work to do.

    Args:
        like_bytes: about how much the answer will be; small ones need fewer connections (0: nobody knows).
        fetcher: a thread that takes the answer in meanwhile. A large one does not fit into the socket: the server sends
            on as it is read, and would be waited for.
    """

    def __init__(
        self,
        client: redis.Redis,
        topic: str,
        offsets: Mapping[int, bytes],
        count: int,
        *,
        apart: bool = False,
        like_bytes: int = 0,
        fetcher: Executor | None = None,
    ) -> None:
        super().__init__(topic, offsets, count, apart=apart)
        self._asked: AskedApart | None = None
        self._fetched: Future[list[Any]] | None = None
        logs = list(self._positions.items())
        most = min(len(logs), _CONNECTIONS, 1 + like_bytes // _AT_A_TIME if like_bytes else _CONNECTIONS)
        shares = [self._commands(dict(logs[n::most])) for n in range(most)]
        with contextlib.suppress(redis.RedisError):
            self._asked = AskedApart(client, shares)
            self._fetched = fetcher.submit(self._asked.replies) if fetcher else None

    def ready(self, timeout_s: float) -> bool:
        """Wait so long for the answer. Returns whether `take` need not wait, be it to find nothing."""
        if self._fetched is not None:
            return bool(wait([self._fetched], timeout_s).done)
        try:
            return self._asked is None or self._asked.ready(timeout_s)
        except redis.RedisError:
            self._asked = None
            return True

    def take(self) -> dict[int, list[Raw]]:
        """What was found, once. Waits for the answer."""
        asked, self._asked = self._asked, None
        try:
            if asked is not None:
                self.answered(asked.replies() if self._fetched is None else self._fetched.result())
        except redis.RedisError:
            return {}
        return super().take()

    def drop(self) -> None:
        """It is not wanted any more."""
        asked, self._asked = self._asked, None
        if asked is not None and self._fetched is None:
            asked.drop()
        elif asked is not None and self._fetched is not None and not self._fetched.done():
            asked.interrupt()
