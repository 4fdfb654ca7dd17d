"""What a worker reads next: after which ids, how much at a time, and along with which commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.broker.connection import Client
from pipeline.broker.reader import Ahead, Entry, read
from pipeline.lifecycle import Owned
from pipeline.settings import Settings
from pipeline.task import Effects

_READ_BYTES = 64 << 20
"""What one read should hold at most. Redis bounds reads by entries alone: the first of oversized ones is as large as it
is, those after it are not."""

Found = dict[int, list[Entry]]


class Intake:
    """One worker's reads, each of all its partitions.

    entries: how many are read at a time, of all partitions together; fewer while batches take too long for the lease.
    """

    def __init__(self, client: Client, settings: Settings, log: Any) -> None:
        self.entries = settings.read_entries
        self._client, self._settings, self._log = client, settings, log
        self._ahead: Ahead | None = None
        self._asked = 0  # of each partition, in the read whose chunks are being worked on

    def count(self, partitions: int) -> int:
        """How many are read of each of so many partitions."""
        return max(1, self.entries // partitions)

    def next(self, owned: Mapping[int, Owned], block_ms: int) -> Found:
        """Chunks of every partition whose rows are up to date: what was read ahead, or else waited for.

        Raises BrokerUnavailable: no answer; read again.
        """
        offsets = {p: o.offset for p, o in owned.items() if not o.behind}
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (found := ahead.take(offsets)):
            return found
        s, self._asked = self._settings, self.count(len(owned))
        return read(self._client, s.topic, offsets, self._asked, block_ms, enough=s.max_batch)

    def ahead(self, owned: Mapping[int, Owned], effects: Iterable[tuple[Owned, Effects]]) -> Ahead:
        """What `next` would read once these effects are committed, for the commit to ask for.

        All partitions are asked for, not only those that are committed to: none waits for the others to be silent.
        """
        offsets = {p: o.offset for p, o in owned.items() if not o.behind}
        offsets |= {o.partition: made.offset for o, made in effects if o.partition in offsets}
        self._asked = self.count(len(owned))
        self._ahead = Ahead(self._settings.topic, offsets, self._asked)
        return self._ahead

    def size(self, found: Found, ran_s: float) -> None:
        """A batch must be committed well within its lease, and fit into memory: one that took too long, or was too
        large, is followed by smaller ones."""
        entries, aim_s = sum(map(len, found.values())), self._settings.lease_ms / 1000 / 4
        size_bytes = sum(len(value) for of in found.values() for _, fields in of for value in fields.values())
        excess = max(ran_s / aim_s, size_bytes / _READ_BYTES)
        if excess > 1:
            self.entries = max(1, min(self.entries, int(entries / excess)))
            self._log.warning(
                "batch_too_large",
                entries=entries,
                ran_s=round(ran_s, 3),
                size_bytes=size_bytes,
                next=self.entries,
            )
        elif excess < 0.5 and any(len(of) >= self._asked for of in found.values()):
            self.entries = min(self._settings.read_entries, 2 * self.entries)
