"""Rows between the belt and Redis: loaded when a stream comes, stored later where they were behind, replayed where a
worker that is gone left them behind.

Between the first chunk that is run and the commit of what it did, nothing may fail for want of Redis: rows on the belt
are then ahead of what is stored, and whoever failed there and tried again would take these chunks for known. So nothing
here asks it for anything then, and what is asked ahead (`intake`) raises nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pipeline import task as tasks
from pipeline.batcher import Batcher
from pipeline.belt import Belt
from pipeline.broker import partition as partitions
from pipeline.broker.connection import Client
from pipeline.broker.keys import comes_before
from pipeline.broker.reader import read
from pipeline.committing import Committer
from pipeline.errors import RowCorrupt
from pipeline.intake import Found, Intake
from pipeline.lifecycle import Owned, Phase
from pipeline.ownership import Ownership
from pipeline.settings import Settings


class Rows:
    """One worker's rows. All that it stores goes through its committer; replays are of the size of its reads."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        belt: Belt,
        batcher: Batcher,
        committer: Committer,
        intake: Intake,
        log: Any,
    ) -> None:
        self._client, self._topic, self._log = client, settings.topic, log
        self._belt, self._batcher = belt, batcher
        self._committer, self._intake = committer, intake

    def load(self, work: Sequence[Owned], streams: Sequence[list[str]]) -> None:
        """Put the rows of a batch onto the belt: of each partition its streams. Raises BrokerUnavailable."""
        if self._belt.begin([stream for names in streams for stream in names]):
            return
        missing = {owned.lease.keys: self._belt.missing(names) for owned, names in zip(work, streams, strict=True)}
        stored = partitions.load_rows(self._client, missing) if any(missing.values()) else {}
        for owned in work:
            keys = owned.lease.keys
            for stream, row in zip(missing[keys], stored.get(keys, []), strict=True):
                try:
                    self._belt.place(stream, keys.partition, row)
                except RowCorrupt as error:
                    self._belt.place(stream, keys.partition, None)
                    owned.corrupt[stream] = str(error)
                    self._log.warning("row_corrupt", partition=keys.partition, stream=stream, error=str(error))

    @staticmethod
    def note_corrupt(owned: Owned) -> None:
        """A row that was discarded is told with the first chunk that its stream takes afresh."""
        for chunk in owned.task.chunks if owned.corrupt else ():
            if chunk.stream in owned.corrupt and chunk.output is not None:
                chunk.notes = [{"kind": "row_corrupt", "why": owned.corrupt.pop(chunk.stream)}, *chunk.notes]

    def catch_up(self, ownership: Ownership, of: Sequence[Owned]) -> None:
        """Store what rows lack: a worker that stops, or has nothing else to do, leaves nothing to replay."""
        self._committer.settle(ownership)
        settled = [o for o in of if o.task.rows_behind and o.phase is Phase.RUNNING]
        if settled:
            effects = [(owned, owned.task.catch_up(owned.offset, self._belt)) for owned in settled]
            self._committer.commit(ownership, effects)

    def replay(self, ownership: Ownership, late: Sequence[Owned]) -> None:
        """Run again, on rows that lack them, chunks of partitions whose rows were behind when they were taken over.

        Nothing is published by it. Every batch stores the rows it has brought forward, so that a worker that dies in
        the midst of it leaves less to do. Raises BrokerUnavailable: call again.
        """
        count = self._intake.count(len(ownership.owned))
        found = read(self._client, self._topic, {o.partition: o.behind for o in late}, count, 0)
        taken: Found = {}
        streams: list[list[str]] = []
        upto: list[bytes] = []
        for owned in late:
            if owned.phase is Phase.GRANTED:
                owned.to(Phase.RUNNING)
            read_entries = found.get(owned.partition, [])
            entries = [entry for entry in read_entries if not comes_before(owned.offset, entry[0])]
            taken[owned.partition] = entries
            streams.append(owned.task.take(entries))
            more = len(read_entries) == count == len(entries)
            upto.append(entries[-1][0] if more else owned.offset)
        self.load(late, streams)
        for owned in late:
            owned.task.leave_out_known(self._belt, owned.corrupt)
        began_s = time.monotonic()
        tasks.run([owned.task for owned in late], self._belt, self._batcher)
        self._intake.size(taken, sum([owned.task.size_bytes for owned in late]), time.monotonic() - began_s)
        effects = [(o, o.task.replayed(to, o.offset, self._belt)) for o, to in zip(late, upto, strict=True)]
        self._committer.commit(ownership, effects)
        for owned, made in effects:
            if owned.phase is not Phase.RUNNING:
                continue  # fenced, or out of time with the commit in doubt
            owned.behind = made.behind
            if not made.behind:
                self._log.info("replayed", partition=owned.partition)
