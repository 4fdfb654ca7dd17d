"""Committing what batches did to partitions: again while Redis is away, never after another may own them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from pipeline.broker import partition as partitions
from pipeline.broker.connection import Client
from pipeline.broker.partition import Commit
from pipeline.broker.reader import Ahead
from pipeline.errors import BrokerUnavailable, Fenced
from pipeline.lifecycle import Owned, Phase
from pipeline.ownership import Ownership
from pipeline.settings import Settings
from pipeline.task import Effects

_BACKOFF_S = (0.02, 1.0)


class Committer:
    """One worker's commits.

    Args:
        counts: where what batches counted is added up.
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

    def commit(self, ownership: Ownership, effects: list[tuple[Owned, Effects]], ahead: Ahead | None = None) -> None:
        """Commit every partition's effects; the same commit again while Redis is away and the lease may last.

        With the first try goes what is to be read `ahead`. A partition that another owns by now is dropped. Raises
        ConfigError: a commit that cannot be, a defect of ours.
        """
        pending = [(owned, _commit_of(owned, e)) for owned, e in effects]
        for owned, _ in pending:
            owned.to(Phase.COMMITTING)
        failures, why = 0, ""
        while pending:
            sent_s = time.monotonic()
            outcomes = partitions.commit_many(
                self._client,
                [(owned.lease, commit) for owned, commit in pending],
                self._settings.replicas,
                ahead=None if failures else ahead,
            )
            again: list[tuple[Owned, Commit]] = []
            for (owned, commit), outcome in zip(pending, outcomes, strict=True):
                if outcome.error is None:
                    self._stored(owned, commit, sent_s)
                elif isinstance(outcome.error, BrokerUnavailable):
                    again.append((owned, commit))
                    why = str(outcome.error)
                elif isinstance(outcome.error, Fenced):
                    ownership.drop(owned, outcome.error)
                else:
                    raise outcome.error
            if not again:
                return
            self._log.warning("commit_retried", error=why, failures=failures)
            if self._late():
                return  # whether they are stored is unknown, and need not be known: the next owner asks for the offset
            self._wait(min(backoff_s(failures), self._settings.lease_ms / 4000))
            failures += 1
            self._away(why)
            pending = [pair for pair in again if ownership.owned.get(pair[0].partition) is pair[0]]

    def _stored(self, owned: Owned, commit: Commit, sent_s: float) -> None:
        owned.to(Phase.RUNNING)
        owned.offset, owned.entries_read = commit.offset_after, commit.entries_read
        owned.renewed_s = sent_s
        if commit.offset_after == commit.offset_before:
            return  # rows alone have nothing to tell
        for happening in owned.task.happenings():
            self._log.warning(happening.kind, partition=owned.partition, stream=happening.stream, **happening.facts)
        self._counts.update(owned.task.counts)
        owned.task.counts.clear()


def _commit_of(owned: Owned, effects: Effects) -> Commit:
    read_before = owned.entries_read
    return Commit(
        offset_before=owned.offset,
        offset_after=effects.offset,
        entries_read=read_before + effects.entries if read_before >= 0 else -1,
        results=effects.results,
        dead=effects.dead,
        rows=effects.rows,
        behind=effects.behind,
    )


def backoff_s(failures: int) -> float:
    """How long to wait after so many failures, in seconds."""
    first, last = _BACKOFF_S
    return min(last, first * 2.0 ** min(failures, 10))
