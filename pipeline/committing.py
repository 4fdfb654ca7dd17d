"""Committing what batches did to partitions: again while Redis is away, never after another may own them.

A commit may be on its way while the next batch is computed. One at a time: the next is sent once it is known what
became of the one before, so that a partition's commits follow each other, and a batch is undone by dropping its
partition alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.broker.connection import Client
from pipeline.broker.partition import Commit, Outcome, Sending
from pipeline.broker.reader import Reading
from pipeline.errors import BrokerUnavailable, Fenced
from pipeline.lifecycle import Owned, Phase
from pipeline.ownership import Ownership
from pipeline.settings import Settings
from pipeline.task import Effects, Happening

_BACKOFF_S = (0.02, 1.0)


class _Pending(NamedTuple):
    """One partition's commit, and what there is to tell of its batch once it is stored."""

    owned: Owned
    commit: Commit
    happenings: Sequence[Happening]
    counts: Mapping[str, int]


class _Flight(NamedTuple):
    """Commits on their way, since `sent_s`."""

    pending: list[_Pending]
    sent_s: float
    sending: Sending


class Committer:
    """One worker's commits.

    Args:
        counts: where what batches counted is added up, and `overlapped`: commits that were not waited for at once.
        late: whether it is time to give up, for the worker must be gone.
        wait: wait for so many seconds, or until it is late.
        away: called with the reason before each further attempt.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        counts: Counter[str],
        log: Any,
        *,
        late: Callable[[], bool],
        wait: Callable[[float], None],
        away: Callable[[str], None],
    ) -> None:
        self._client, self._settings, self._counts, self._log = client, settings, counts, log
        self._late, self._wait, self._away = late, wait, away
        self._flight: _Flight | None = None

    def commit(
        self, ownership: Ownership, effects: Iterable[tuple[Owned, Effects]], reading: Reading | None = None
    ) -> None:
        """Commit every partition's effects; the same commit again while Redis is away and the lease may last. With the
        first attempt goes a `reading` of what follows.

        A partition that another owns by now is dropped. Raises ConfigError: a commit that cannot be, a defect of ours.
        """
        pending = self._begun(effects)
        sent_s = time.monotonic()
        if pending:
            self._conclude(ownership, pending, self._send(pending, reading).outcomes(), sent_s)

    def begin(self, ownership: Ownership, effects: Iterable[tuple[Owned, Effects]]) -> None:
        """Send the commit and do not wait: what `commit` would do about its outcome, `settle` does.

        Until then nothing may be done to these partitions but reading, and computing the batch that follows.
        """
        pending = self._begun(effects)
        if pending:
            self._counts["overlapped"] += 1
            self._flight = _Flight(pending, time.monotonic(), self._send(pending))

    def settle(self, ownership: Ownership) -> None:
        """Wait for the commit that is on its way, if one is. Raises as `commit`."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._conclude(ownership, flight.pending, flight.sending.outcomes(), flight.sent_s)

    def abandon(self) -> None:
        """Do not care what becomes of the commit that is on its way, if one is."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.sending.drop()

    def _begun(self, effects: Iterable[tuple[Owned, Effects]]) -> list[_Pending]:
        assert self._flight is None, "one commit at a time"
        pending = [_pending(owned, made) for owned, made in effects]
        for each in pending:
            each.owned.to(Phase.COMMITTING)
            each.owned.sent = each.commit.offset_after
        return pending

    def _send(self, pending: Sequence[_Pending], reading: Reading | None = None) -> Sending:
        commits = [(each.owned.lease, each.commit) for each in pending]
        return Sending(self._client, commits, self._settings.replicas, reading=reading)

    def _conclude(
        self, ownership: Ownership, pending: list[_Pending], outcomes: Sequence[Outcome], sent_s: float
    ) -> None:
        failures, why = 0, ""
        while True:
            again: list[_Pending] = []
            for each, outcome in zip(pending, outcomes, strict=True):
                if ownership.owned.get(each.owned.partition) is not each.owned:
                    continue  # its lease ran out while the commit was on its way
                if outcome.error is None:
                    self._stored(each, sent_s)
                elif isinstance(outcome.error, BrokerUnavailable):
                    again.append(each)
                    why = str(outcome.error)
                elif isinstance(outcome.error, Fenced):
                    ownership.drop(each.owned, outcome.error)
                else:
                    raise outcome.error
            if not again:
                if failures:
                    self._log.info("broker_available", failures=failures)
                return
            self._log.warning("commit_retried", error=why, failures=failures)
            if self._late():
                return  # whether they are stored is unknown, and need not be known: the next owner asks for the offset
            self._wait(min(backoff_s(failures), self._settings.lease_ms / 4000))
            failures += 1
            self._away(why)
            pending = [each for each in again if ownership.owned.get(each.owned.partition) is each.owned]
            if not pending:
                return
            sent_s = time.monotonic()
            outcomes = self._send(pending).outcomes()

    def _stored(self, each: _Pending, sent_s: float) -> None:
        owned, commit = each.owned, each.commit
        owned.to(Phase.RUNNING)
        owned.offset, owned.sent, owned.rows_at = commit.offset_after, b"", commit.behind
        owned.renewed_s = sent_s
        for happening in each.happenings:
            self._log.warning(happening.kind, partition=owned.partition, stream=happening.stream, **happening.facts)
        for name, count in each.counts.items():
            self._counts[name] += count


def _pending(owned: Owned, effects: Effects) -> _Pending:
    e = effects  # by place: a dozen partitions in a batch of thirty chunks are no rare thing
    commit = Commit(owned.offset, e.offset, e.entries, e.results, e.dead, e.rows, (), e.behind, owned.rows_at)
    return _Pending(owned, commit, owned.task.happenings() if effects.heard else (), effects.counts)


def backoff_s(failures: int) -> float:
    """How long to wait after so many failures, in seconds."""
    first, last = _BACKOFF_S
    return min(last, first * 2.0 ** min(failures, 10))
