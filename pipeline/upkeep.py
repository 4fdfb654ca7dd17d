"""What a worker asks of Redis beside its batches, without waiting for the answers: a server under load keeps each of
them for as long as a batch takes, and at the limit that is what streams would be late by.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from pipeline.broker.connection import Client
from pipeline.broker.keys import Keys
from pipeline.broker.later import Later
from pipeline.broker.partition import asked_lags
from pipeline.broker.retention import Ages, trim, trimming
from pipeline.settings import Settings


class Upkeep:
    """One worker's questions about its lag, and its trimming of its partitions' logs: one at a time, in turns, so that
    no batch waits while the server frees what all of them have to let go of."""

    def __init__(self, client: Client, settings: Settings) -> None:
        s = settings
        self._client, self._topic, self._group = client, s.topic, s.group
        self._ages_ms = Ages(s.input_retention_ms, s.results_retention_ms, s.outage_ms)
        self._every_s = s.trim_every_ms / 1000
        self._lags: Later[list[int]] | None = None
        self._trimming: tuple[int, Later[tuple[int, int, list[bytes]]]] | None = None
        self._groups: dict[int, list[bytes]] = {}
        self._last = -1
        self._next_trim_s = self._next_trim_all_s = 0.0

    def lag(self, of: Sequence[Keys]) -> int | None:
        """Chunks that the group has still to read; None: not answered yet, ask again. Raises BrokerUnavailable."""
        if self._lags is None:
            self._lags = asked_lags(self._client, of)
            return None
        lags, self._lags = self._lags, None
        if not lags.ready():
            self._lags = lags
            return None
        return sum(lags.answer())

    def trim(self, partitions: Iterable[int]) -> None:
        """See to the next of these partitions, if it is time. Raises BrokerUnavailable."""
        if self._trimming is not None:
            (partition, asked), self._trimming = self._trimming, None
            if not asked.ready():
                self._trimming = partition, asked
                return
            self._groups[partition] = asked.answer()[2]
        now, held = time.monotonic(), sorted(partitions)
        if now < self._next_trim_s or not held:
            return
        self._next_trim_s = now + self._every_s / len(held)
        partition = self._last = next((p for p in held if p > self._last), held[0])
        known = self._groups.get(partition, [self._group.encode()])
        asked = trimming(self._client, self._topic, partition, [self._group], self._ages_ms, known)
        self._trimming = partition, asked

    def trim_all(self, partitions: Iterable[int]) -> None:
        """Trim all of them and wait, if it is time: for when nothing goes on before there is room. Raises
        BrokerUnavailable."""
        if time.monotonic() < self._next_trim_all_s:
            return
        self._next_trim_all_s = time.monotonic() + self._every_s
        for partition in partitions:
            trim(self._client, self._topic, partition, [self._group], *self._ages_ms)

    def forget(self) -> None:
        """Let go of what was asked for."""
        lags, self._lags = self._lags, None
        trimming_, self._trimming = self._trimming, None
        if lags is not None:
            lags.drop()
        if trimming_ is not None:
            trimming_[1].drop()
