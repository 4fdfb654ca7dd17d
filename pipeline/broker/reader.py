"""Reading logs: chunks for a worker, results for a consumer. Plain XREAD, from ids that the caller keeps.

Consumer-group reading (XREADGROUP) would hand one stream's chunks to several consumers, out of order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
import redis.asyncio

from pipeline.broker.connection import raise_first, round_trip, timeout_ms, translate
from pipeline.broker.keys import Keys, log_key
from pipeline.errors import ConfigError

Entry = tuple[bytes, dict[bytes, bytes]]
"""An entry as read: its id, and its fields."""

Start = Literal["now", "beginning"] | Mapping[int, bytes]
"""Where to begin: at what comes next, at what is still kept, or after an id for each partition."""

BEGINNING = b"0-0"
_POLL_S = 0.005  # only on a cluster, where no single call can wait on several slots


def _command(positions: Mapping[str, bytes], count: int, block_ms: int) -> list[Any]:
    command: list[Any] = ["XREAD", "COUNT", count]
    if block_ms > 0:  # to Redis, 0 means for ever; here it means not at all
        command += ["BLOCK", block_ms]
    return [*command, "STREAMS", *positions, *positions.values()]


def _entries(reply: Any) -> dict[str, list[Entry]]:
    return {
        key.decode(): [(id_, _fields(flat)) for id_, flat in entries if flat is not None]
        for key, entries in (reply or {}).items()
    }


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return fields if 2 * len(fields) == len(flat) else _told_apart(flat)


def _told_apart(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Fields of an entry that holds a name twice: each but the first under a name that says where it stood.

    Of two `seq` a dictionary would keep one, and which one is not ours to choose. So both are kept, and the second has
    a name that nobody knows: whoever reads the entry rejects it, and its dead letter shows what was pushed.

    >>> _told_apart([b"seq", b"1", b"seq", b"2"])
    {b'seq': b'1', b'seq (field 2)': b'2'}
    """
    fields: dict[bytes, bytes] = {}
    for n, (name, value) in enumerate(zip(flat[::2], flat[1::2], strict=True), start=1):
        fields[b"%s (field %d)" % (name, n) if name in fields else name] = value
    return fields


def _check(client: redis.Redis | redis.asyncio.Redis, block_ms: int) -> None:
    limit_ms = timeout_ms(client)
    if block_ms >= limit_ms:
        raise ConfigError(
            f"a read that blocks for {block_ms} ms would outlast the socket timeout of {limit_ms:.0f} ms; "
            f"block for less, or connect with a longer timeout"
        )


def read_keys(client: redis.Redis, positions: Mapping[str, bytes], count: int, block_ms: int) -> dict[str, list[Entry]]:
    """Entries after the given ids, at most `count` a key, of several logs in one call.

    Waits up to `block_ms` (0: not at all) for the first one. Keys without new entries are left out. On a cluster,
    where logs lie in different slots, a pipeline of reads, repeated until something is there.

    Raises:
        BrokerUnavailable: no answer; read again, a read changes nothing.
        ConfigError: `block_ms` outlasts the client's socket timeout, or a key is no log.
    """
    if not positions:
        return {}
    _check(client, block_ms)
    command = _command(positions, count, block_ms)
    with translate():
        reply = round_trip(client, [command])[0]
        if not isinstance(reply, redis.exceptions.ClusterCrossSlotError):
            if isinstance(reply, Exception):
                raise reply
            return _entries(reply)
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
    client: redis.asyncio.Redis, positions: Mapping[str, bytes], count: int, block_ms: int
) -> dict[str, list[Entry]]:
    """`read_keys` for asyncio."""
    if not positions:
        return {}
    _check(client, block_ms)
    command = _command(positions, count, block_ms)
    with translate():
        try:
            return _entries(await client.execute_command(*command))  # type: ignore[no-untyped-call]
        except redis.exceptions.ClusterCrossSlotError:
            pass
        deadline_s = time.monotonic() + block_ms / 1000
        while True:
            async with client.pipeline(transaction=False) as pipe:
                for each in _apart(positions, count):
                    pipe.execute_command(*each)
                found = _merged(raise_first(await pipe.execute(raise_on_error=False)))
            if found or time.monotonic() >= deadline_s:
                return found
            await asyncio.sleep(_POLL_S)


def _apart(positions: Mapping[str, bytes], count: int) -> list[list[Any]]:
    return [_command({key: id_}, count, 0) for key, id_ in positions.items()]


def _merged(replies: Sequence[Any]) -> dict[str, list[Entry]]:
    return {key: entries for reply in replies for key, entries in _entries(reply).items()}


def read(
    client: redis.Redis, topic: str, offsets: Mapping[int, bytes], count: int, block_ms: int, *, enough: int = 0
) -> dict[int, list[Entry]]:
    """Chunks after the offset of each partition, at most `count` a partition.

    Partitions without new chunks are left out. Waits, and raises, as `read_keys`. Where it gets fewer than `enough`
    chunks it looks once more: a read that waited is answered with the first entry that comes, and what comes with it,
    in one push of many streams say, would be a small batch of its own. Nothing is waited for.
    """
    partitions = {log_key(topic, partition): partition for partition in offsets}
    positions = {key: offsets[partition] for key, partition in partitions.items()}
    found = read_keys(client, positions, count, block_ms)
    sizes = [len(entries) for entries in found.values()]
    if 0 < sum(sizes) < enough and max(sizes) < count:
        positions |= {key: entries[-1][0] for key, entries in found.items()}
        for key, entries in read_keys(client, positions, count - max(sizes), 0).items():
            found.setdefault(key, []).extend(entries)
    return {partitions[key]: entries for key, entries in found.items()}


class Ahead:
    """The next chunks, asked for in the round trip of another act: a worker that commits has to read next anyway.

    Reading changes nothing, so whoever finds the act failed may let go of what was read. Nothing is waited for.

    Args:
        offsets: where each partition will stand once the act is done.
        count: at most so many chunks a partition.
    """

    def __init__(self, topic: str, offsets: Mapping[int, bytes], count: int) -> None:
        self._offsets = dict(offsets)
        self._partitions = {log_key(topic, partition): partition for partition in offsets}
        positions = {key: offsets[partition] for key, partition in self._partitions.items()}
        self.command = _command(positions, count, 0)
        self._found: dict[int, list[Entry]] = {}

    def settle(self, reply: Any) -> None:
        """Its reply came. An error is not told here: who reads in its stead meets it again (on a cluster it is one
        always, and there `read` knows another way)."""
        if not isinstance(reply, Exception):
            self._found = {self._partitions[key]: entries for key, entries in _entries(reply).items()}

    def take(self, offsets: Mapping[int, bytes]) -> dict[int, list[Entry]]:
        """What was found, once: of those partitions alone that stand where they were to stand."""
        found, self._found = self._found, {}
        return {p: entries for p, entries in found.items() if offsets.get(p) == self._offsets[p]}


@dataclass(frozen=True, slots=True)
class Result:
    """One entry of a results log. `id` is the id of the chunk that caused it."""

    partition: int
    id: bytes
    fields: dict[bytes, bytes]


def last_results(client: redis.Redis, topic: str, group: str, partitions: int) -> dict[int, bytes]:
    """The id of the last result of each partition (`0-0` before the first): what `now` is, as a `Start`.

    Raises:
        BrokerUnavailable: no answer; call again.
        ConfigError: a name that is none, or a key is no log.
    """
    with translate(), client.pipeline(transaction=False) as pipe:
        for partition in range(partitions):
            pipe.xrevrange(Keys(topic, group, partition).out, count=1)
        replies = raise_first(pipe.execute(raise_on_error=False))
    return {partition: reply[0][0] if reply else BEGINNING for partition, reply in enumerate(replies)}


class _Positions:
    """Where a reader of all partitions of a group stands: what both kinds of reader share."""

    def __init__(self, topic: str, group: str, partitions: int, start: Start) -> None:
        self._keys = {Keys(topic, group, partition).out: partition for partition in range(partitions)}
        self._start = start
        self._positions: dict[str, bytes] = {}
        if start == "beginning":
            self._positions = dict.fromkeys(self._keys, BEGINNING)
        elif start != "now":
            self._positions = {key: start.get(partition, BEGINNING) for key, partition in self._keys.items()}

    @property
    def offsets(self) -> dict[int, bytes]:
        """The id of the last result read of each partition: pass it as `start` to go on later.

        Raises:
            ConfigError: nobody has said yet what `now` is; an empty answer would be taken for the beginning.
        """
        if not self._positions:
            raise ConfigError("a reader that starts `now` has no offsets yet: `open` it first")
        return {self._keys[key]: id_ for key, id_ in self._positions.items()}

    def _begin(self, last: Sequence[Any]) -> None:
        # `now` becomes an id at once and not `$` at every call, or what comes between two calls would be missed.
        self._positions = {
            key: reply[0][0] if reply else BEGINNING
            for key, reply in zip(self._keys, raise_first(list(last)), strict=True)
        }

    def _advance(self, found: dict[str, list[Entry]]) -> list[Result]:
        results = [Result(self._keys[key], id_, fields) for key, entries in found.items() for id_, fields in entries]
        for key, entries in found.items():
            self._positions[key] = entries[-1][0]
        return results


class ResultReader(_Positions):
    """Reads the results of a group, all partitions: in order within each, as they come between them.

    Example:
        reader = ResultReader(connect(url), "calls", "digits", partitions=4, start="beginning")
        for result in reader.read(block_ms=1000): ...
    """

    def __init__(self, client: redis.Redis, topic: str, group: str, partitions: int, start: Start = "now") -> None:
        super().__init__(topic, group, partitions, start)
        self._client = client

    def open(self) -> None:
        """Fix what `now` is. The first `read` does it otherwise. Raises as `read_keys`."""
        if not self._positions:
            with translate(), self._client.pipeline(transaction=False) as pipe:
                for key in self._keys:
                    pipe.xrevrange(key, count=1)
                self._begin(pipe.execute(raise_on_error=False))

    def read(self, count: int = 256, block_ms: int = 1000) -> list[Result]:
        """Results since the last read, at most `count` a partition; empty if none came in `block_ms`.

        Raises as `read_keys`; after `BrokerUnavailable` read on: nothing is skipped.
        """
        self.open()
        return self._advance(read_keys(self._client, self._positions, count, block_ms))


class AsyncResultReader(_Positions):
    """`ResultReader` for asyncio."""

    def __init__(
        self, client: redis.asyncio.Redis, topic: str, group: str, partitions: int, start: Start = "now"
    ) -> None:
        super().__init__(topic, group, partitions, start)
        self._client = client

    async def open(self) -> None:
        """Fix what `now` is. The first `read` does it otherwise. Raises as `read_keys`."""
        if not self._positions:
            with translate():
                async with self._client.pipeline(transaction=False) as pipe:
                    for key in self._keys:
                        pipe.xrevrange(key, count=1)
                    self._begin(await pipe.execute(raise_on_error=False))

    async def read(self, count: int = 256, block_ms: int = 1000) -> list[Result]:
        """Results since the last read, at most `count` a partition; empty if none came in `block_ms`."""
        await self.open()
        return self._advance(await read_keys_async(self._client, self._positions, count, block_ms))
