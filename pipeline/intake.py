"""What a worker reads next: after which ids, how much at a time, and while what else is done.

Under load a batch is asked for while the one in front of it is turned into a commit, or in the same moment as that is
sent. If there is one, the commit need not be waited for: it travels while the next batch is computed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.broker.connection import Client
from pipeline.broker.entries import Raw
from pipeline.broker.reader import Ahead, Reading, read
from pipeline.lifecycle import Owned
from pipeline.settings import Settings

_READ_BYTES = 64 << 20
"""What one read should hold at most. Redis bounds reads by entries alone: the first of oversized ones is as large as it
is, those after it are not."""

_ENTRY_BYTES = 100
"""About what an entry has in an answer beside its samples."""

_PATIENCE = 8
"""The part of a lease for which a batch that is computed waits for the next one to be read."""

_SOON_S = 0.02
"""For how long what was asked beside a commit is waited for before what became of the commit is."""

Found = dict[int, list[Raw]]
Offsets = dict[int, bytes]


class Intake:
    """One worker's reads, each of all its partitions.

    entries: how many are read at a time, of all partitions together; fewer while batches take too long for the lease.
    """

    def __init__(self, client: Client, settings: Settings, log: Any) -> None:
        self.entries = settings.read_entries
        self._client, self._settings, self._log = client, settings, log
        self._ahead: Ahead | None = None
        self._fetcher = ThreadPoolExecutor(1, "read")  # starts no thread before there is something to fetch
        self._asked_s = self._waited_s = 0.0
        self._hand: dict[int, tuple[bytes, list[Raw]]] = {}  # after which id, what
        self._asked = self._hand_asked = 0  # of each partition, in the read that is worked on, and that is in hand
        self._calm = False  # did the last batch take much less than it may?
        self._flows = False  # is there more behind what was read last, as far as is known?
        self._apart = False  # is this a cluster, where partitions lie in different slots?

    @property
    def in_hand(self) -> int:
        """Chunks that are read, and that `next` has yet to give."""
        return sum(len(entries) for _, entries in self._hand.values())

    def forget(self) -> None:
        """Let go of what is in hand, and of what was asked for."""
        ahead, self._ahead, self._hand = self._ahead, None, {}
        if ahead is not None:
            ahead.drop()

    def close(self) -> None:
        """No more reads."""
        self.forget()
        self._fetcher.shutdown()

    def count(self, partitions: int) -> int:
        """How many are read of each of so many partitions."""
        return max(1, self.entries // partitions)

    def next(self, owned: Mapping[int, Owned], block_ms: int) -> Found:
        """Chunks of partitions whose rows are up to date: what is in hand, or else what comes in `block_ms`.

        Raises BrokerUnavailable: no answer; read again.
        """
        s, offsets = self._settings, _offsets(owned)
        if self._ahead is not None and not self._ahead.ready(block_ms / 1000):
            if time.monotonic() - self._asked_s > s.lease_ms / 1000:  # this connection is dead, whatever others are
                self.forget()
            return {}
        self._take()
        hand, self._hand = self._hand, {}
        # Of what was in hand a partition may have been dropped since, and even be owned anew.
        found = {p: entries for p, (after, entries) in hand.items() if offsets.get(p) == after}
        self._asked = self._hand_asked
        if not found:
            self._asked = self.count(len(owned))
            found = read(self._client, s.topic, offsets, self._asked, block_ms, enough=s.max_batch)
            self._flows = self._is_full(found)
        return found

    def more_waits(self, found: Found, size_bytes: int) -> bool:
        """Whether there is more behind `found`, by all that is known, and it may be as much: to be fetched while
        `found` is run."""
        return self._calm and 2 * size_bytes < _READ_BYTES and self._is_full(found)

    def _is_full(self, found: Found) -> bool:
        return any(len(of) >= self._asked for of in found.values())

    def ask(self, owned: Mapping[int, Owned], found: Found, size_bytes: int, *, fetch: bool = False) -> None:
        """Ask for what follows `found`, which has samples of `size_bytes`, and do not wait: `collect` has the answer.
        fetch: take it in meanwhile.

        All partitions are asked for, not only those of `found`: none waits for the others to be silent. Reading changes
        nothing, so where the commit of `found` fails, what was read is let go of. Raises nothing, for the batch that
        was computed is on the belt and must be committed. Where the last look found nothing, or after less than half a
        full step, nothing is asked for: there is seldom more by then. It is asked already: nothing is, either.
        """
        small = 2 * sum(map(len, found.values())) < self._settings.max_batch
        if self._ahead is not None or not self._flows or small:
            return
        self._ask(owned, found, size_bytes, self._fetcher if fetch else None)

    def _ask(
        self, owned: Mapping[int, Owned], found: Found, size_bytes: int, fetcher: ThreadPoolExecutor | None
    ) -> None:
        self._asked_s = time.monotonic()
        topic, offsets, count = self._settings.topic, _behind(owned, found), self.count(len(owned))
        like_bytes = size_bytes + _ENTRY_BYTES * sum(map(len, found.values()))
        self._ahead = Ahead(
            self._client, topic, offsets, count, apart=self._apart, like_bytes=like_bytes, fetcher=fetcher
        )

    def ask_beside(self, owned: Mapping[int, Owned], found: Found, size_bytes: int) -> bool:
        """Ask for what follows `found` in the moment before its commit is sent: the server mostly answers that first,
        and what it finds is computed while the server commits. Returns whether it was asked: where the last look found
        nothing there is seldom more, and the commit can take the question along. Raises nothing."""
        if not self._flows or self._apart or self._ahead is not None or self._hand:
            return False
        self._ask(owned, found, size_bytes, None)
        return True

    def follows(self) -> bool:
        """Whether there is something in hand, be it that it comes in this moment: then what became of the commit that
        is on its way is looked at later."""
        if not self._hand and self._ahead is not None and self._ahead.ready(_SOON_S):
            self._take()
        return bool(self._hand)

    def with_commit(self, owned: Mapping[int, Owned], found: Found) -> Reading | None:
        """What follows `found`, to be asked in the same breath as its commit; `answered` takes it in hand. None: it was
        asked for already."""
        if self._ahead is not None or self._hand:
            return None
        return Reading(self._settings.topic, _behind(owned, found), self.count(len(owned)), apart=self._apart)

    def answered(self, reading: Reading | None) -> None:
        """Take in hand what came with a commit."""
        if reading is not None:
            self._take_from(reading)

    def collect(self) -> int:
        """Take in hand what was asked for. Returns how many chunks are in hand.

        Should the answer be long in coming, what was computed must not be late for it: `next` waits for it, then.
        """
        began_s = time.monotonic()
        if self._ahead is not None and self._ahead.ready(self._settings.lease_ms / 1000 / _PATIENCE):
            self._take()
        self._waited_s = time.monotonic() - began_s
        return self.in_hand

    def _take(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._take_from(ahead)

    def _take_from(self, reading: Reading) -> None:
        self._hand = {p: (reading.offsets[p], entries) for p, entries in reading.take().items()}
        self._hand_asked = reading.count
        self._flows = bool(self._hand)
        self._apart |= reading.crosses_slots

    def size(self, found: Found, size_bytes: int, ran_s: float) -> None:
        """A batch must be committed well within its lease, and fit into memory: one that took too long, or was too
        large, is followed by smaller ones. What the one before it waited, for this one to be read, counts as well."""
        entries, aim_s = sum(map(len, found.values())), self._settings.lease_ms / 1000 / 4
        took_s, self._waited_s = ran_s + self._waited_s, 0.0
        excess = max(took_s / aim_s, size_bytes / _READ_BYTES)
        self._calm = excess < 0.5
        if excess > 1:
            self.entries = max(1, min(self.entries, int(entries / excess)))
            self._log.warning(
                "batch_too_large",
                entries=entries,
                ran_s=round(took_s, 3),
                size_bytes=size_bytes,
                next=self.entries,
            )
        elif self._calm and self._is_full(found):
            self.entries = min(self._settings.read_entries, 2 * self.entries)


def _behind(owned: Mapping[int, Owned], found: Found) -> Offsets:
    offsets = _offsets(owned)
    return offsets | {p: entries[-1][0] for p, entries in found.items() if p in offsets}


def _offsets(owned: Mapping[int, Owned]) -> Offsets:
    """After which id each partition is read on: all up to there is committed, or on its way. Where rows are behind,
    it is not."""
    return {p: o.sent or o.offset for p, o in owned.items() if not o.behind}
