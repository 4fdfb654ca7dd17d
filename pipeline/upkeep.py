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
from pipeline.broker.retention import Ages, Trimmed, trimming
from pipeline.errors import BrokerUnavailable
from pipeline.settings import Settings

_AWAY_S = 5.0


class Upkeep:
    """One worker's questions about its lag, and its trimming of its partitions' logs: in turns, spread over the time
    between two trims, so that no batch waits while the server frees what all of them have to let go of."""

    def __init__(self, client: Client, settings: Settings) -> None:
        s = settings
        self._client, self._topic, self._group = client, s.topic, s.group
        self._ages_ms = Ages(s.input_retention_ms, s.results_retention_ms, s.outage_ms)
        self._every_s = s.trim_every_ms / 1000
        self._lag: int | None = None  # None: never known
        self._lags: tuple[Sequence[Keys], Later[list[int]]] | None = None
        self._trimming: Later[dict[int, Trimmed]] | None = None
        self._groups: dict[int, list[bytes]] = {}
        self._last = -1
        self._trimmed_s: float | None = None
        self._next_trim_all_s = 0.0

    def lag(self, of: Sequence[Keys]) -> int:
        """Chunks that the group has still to read, by what was asked in the last call, or before; asks anew. It waits
        for the first answer alone. Raises BrokerUnavailable."""
        if self._lag is None:
            self._lag = sum(asked_lags(self._client, of).answer())
        if self._lags is not None:
            (held, asked), self._lags = self._lags, None
            if not asked.ready():
                self._lags = held, asked
                return self._lag
            found = sum(asked.answer())
            self._lag = found if held == of else self._lag
        self._lags = of, asked_lags(self._client, of)
        return self._lag

    def trim(self, partitions: Iterable[int]) -> None:
        """See to those of these partitions whose turn it is. Raises BrokerUnavailable."""
        if self._trimming is not None:
            asked, self._trimming = self._trimming, None
            if not asked.ready():
                self._trimming = asked
                return
            self._take(asked)
        now, held = time.monotonic(), list(partitions)
        if self._trimmed_s is None:
            count = 1
        else:
            count = min(len(held), int((now - self._trimmed_s) / self._every_s * len(held)))
        if not held or not count:
            return
        self._trimmed_s = now
        held.sort()
        turns = [p for p in held if p > self._last] + [p for p in held if p <= self._last]
        self._last = turns[count - 1]
        self._trimming = self._trim(turns[:count])

    def trim_all(self, partitions: Iterable[int]) -> None:
        """Trim all of them and wait, if it is time: for when nothing goes on before there is room. Raises
        BrokerUnavailable: not again for a while, for the commit that waits is asked for as well."""
        if time.monotonic() < self._next_trim_all_s:
            return
        self._next_trim_all_s = time.monotonic() + self._every_s
        try:
            self._take(self._trim(list(partitions)))
        except BrokerUnavailable:
            self._next_trim_all_s = time.monotonic() + max(self._every_s, _AWAY_S)
            raise

    def _trim(self, partitions: Sequence[int]) -> Later[dict[int, Trimmed]]:
        known = {partition: self._groups.get(partition, [self._group.encode()]) for partition in partitions}
        return trimming(self._client, self._topic, known, [self._group], self._ages_ms)

    def _take(self, asked: Later[dict[int, Trimmed]]) -> None:
        self._groups |= {partition: trimmed.known for partition, trimmed in asked.answer().items()}

    def forget(self) -> None:
        """Let go of what was asked for."""
        lags, self._lags = self._lags, None
        trims, self._trimming = self._trimming, None
        if lags is not None:
            lags[1].drop()
        if trims is not None:
            trims.drop()
