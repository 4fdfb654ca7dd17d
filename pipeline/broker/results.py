"""Reading the results of a group: in order within each partition, none skipped, none twice.

(By one reader. One that goes on from the offsets of another knows nothing of what that one has read.)

What a failover takes back it may give again otherwise: results that were read of a server, and lost with it, are made
once more by the workers; of chunks that were lost and pushed again, or that two servers had under one id, under
other ids or with other contents. A reader that went on behind the last id it had read would miss them. So it remembers
what it read last, and of a server with another history it reads that again, and hands out what is not the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
import redis.asyncio

from pipeline.broker.connection import raise_first, translate
from pipeline.broker.entries import Entry
from pipeline.broker.failover import History
from pipeline.broker.keys import Keys, comes_before
from pipeline.broker.reader import read_keys, read_keys_async
from pipeline.errors import BrokerUnavailable, ConfigError

Start = Literal["now", "beginning"] | Mapping[int, bytes]
"""Where to begin: at what comes next, at what is still kept, or after an id for each partition."""

BEGINNING = b"0-0"

REMEMBERED = 1024
"""Results of each partition: what a failover takes back is the last second, as a rule."""

_Mark = tuple[bytes, int]


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


class _Memory:
    """What was read last of one partition: ids, and what stood there."""

    def __init__(self, start: bytes) -> None:
        self.floor = start  # just before the oldest that is remembered
        self._marks: deque[_Mark] = deque()
        self._before: set[_Mark] = set()  # read of a server with another history, up to `_upto`
        self._upto = start

    def is_new(self, id_: bytes, fields: Mapping[bytes, bytes]) -> bool:
        """Remember an entry. Returns whether it is another than what was read before at this place."""
        mark = id_, hash(tuple(fields.items()))
        self._marks.append(mark)
        if len(self._marks) > REMEMBERED:
            self.floor = self._marks.popleft()[0]
        if self._before and comes_before(self._upto, id_):
            self._before.clear()
        return mark not in self._before

    def again(self) -> bytes:
        """All that is remembered will be read again. Returns after which id."""
        if self._marks and comes_before(self._upto, self._marks[-1][0]):
            self._upto = self._marks[-1][0]
        self._before.update(self._marks)
        self._marks.clear()
        return self.floor


class _Positions:
    """Where a reader of all partitions of a group stands: what both kinds of reader share."""

    def __init__(self, topic: str, group: str, partitions: int, start: Start, history: History | None) -> None:
        self._keys = {Keys(topic, group, partition).out: partition for partition in range(partitions)}
        self._history = history
        self._positions: dict[str, bytes] = {}
        self._before: dict[str, bytes] = {}
        self._memory: dict[str, _Memory] = {}
        if start == "beginning":
            self._stand(dict.fromkeys(self._keys, BEGINNING))
        elif start != "now":
            self._stand({key: start.get(partition, BEGINNING) for key, partition in self._keys.items()})

    def _stand(self, positions: dict[str, bytes]) -> None:
        self._positions = positions
        self._memory = {key: _Memory(id_) for key, id_ in positions.items()}

    @property
    def offsets(self) -> dict[int, bytes]:
        """The id of the last result read of each partition: pass it as `start` to go on later.

        Raises:
            ConfigError: nobody has said yet what `now` is; an empty answer would be taken for the beginning.
        """
        if not self._positions:
            raise ConfigError("a reader that starts `now` has no offsets yet: `open` it first")
        return {self._keys[key]: id_ for key, id_ in self._positions.items()}

    @property
    def offsets_before(self) -> dict[int, bytes]:
        """What the last read began behind: earlier than all it returned."""
        return {self._keys[key]: id_ for key, id_ in self._before.items()}

    def _begin(self, last: Sequence[Any]) -> None:
        # `now` becomes an id at once and not `$` at every call, or what comes between two calls would be missed.
        self._stand(
            {
                key: reply[0][0] if reply else BEGINNING
                for key, reply in zip(self._keys, raise_first(list(last)), strict=True)
            }
        )

    def _advance(self, found: dict[str, list[Entry]]) -> list[Result]:
        self._before = dict(self._positions)
        results = [
            Result(self._keys[key], id_, fields)
            for key, entries in found.items()
            for id_, fields in entries
            if self._memory[key].is_new(id_, fields)
        ]
        for key, entries in found.items():
            self._positions[key] = entries[-1][0]
        return results

    def _elsewhere(self) -> bool:
        """Was it another history that could not be read? Then it is from now on, from before what it may lack."""
        if self._history is None or not self._history.changed:
            return False
        self._history.accept()
        self._positions = {key: memory.again() for key, memory in self._memory.items()}
        return True


class ResultReader(_Positions):
    """Reads the results of a group, all partitions: in order within each, as they come between them.

    `history` is the client's, if it has one: after a failover it is then read again what may have been lost.

    Example:
        reader = ResultReader(connect(url), "calls", "digits", partitions=4, start="beginning")
        for result in reader.read(block_ms=1000): ...
    """

    def __init__(
        self,
        client: redis.Redis,
        topic: str,
        group: str,
        partitions: int,
        start: Start = "now",
        history: History | None = None,
    ) -> None:
        super().__init__(topic, group, partitions, start, history)
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
        while True:
            try:
                self.open()
                found = read_keys(self._client, self._positions, count, block_ms, self._history)
                results = self._advance(found)
                if results or not found:  # else it was all read before, and there may be more behind it
                    return results
            except BrokerUnavailable:
                if not self._elsewhere():
                    raise


class AsyncResultReader(_Positions):
    """`ResultReader` for asyncio."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        topic: str,
        group: str,
        partitions: int,
        start: Start = "now",
        history: History | None = None,
    ) -> None:
        super().__init__(topic, group, partitions, start, history)
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
        while True:
            try:
                await self.open()
                found = await read_keys_async(self._client, self._positions, count, block_ms, self._history)
                results = self._advance(found)
                if results or not found:
                    return results
            except BrokerUnavailable:
                if not self._elsewhere():
                    raise
