"""A partition's way through a worker, and which steps of it are legal.

GRANTED --> RUNNING <--> COMMITTING        a lease; a batch in hand; a commit sent whose outcome is not known
   |           |             |
   |           v             |
   +------> DRAINING <-------+             asked to stop, or over its share: nothing more is read
   |           |             |
   |           v             |
   |        CLOSED           |             clean: the lease given back, the next owner may come at once
   v                         v
   +------> FENCED <---------+             dirty (from any of the four): rows forgotten, nothing written, nothing
                                           given back; whoever holds the lease now is right
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from pipeline.broker.lease import Lease
from pipeline.task import Task


class Phase(Enum):
    """Where a partition stands in this worker."""

    GRANTED = "granted"
    RUNNING = "running"
    COMMITTING = "committing"
    DRAINING = "draining"
    CLOSED = "closed"
    FENCED = "fenced"

    __hash__ = object.__hash__  # Enum's own is Python's, and every step of every partition looks one up twice


LEGAL: dict[Phase, frozenset[Phase]] = {
    Phase.GRANTED: frozenset({Phase.RUNNING, Phase.DRAINING, Phase.FENCED}),
    Phase.RUNNING: frozenset({Phase.COMMITTING, Phase.DRAINING, Phase.FENCED}),
    # Draining with a commit in doubt is legal: the next owner asks for the offset, and need not know.
    Phase.COMMITTING: frozenset({Phase.RUNNING, Phase.DRAINING, Phase.FENCED}),
    Phase.DRAINING: frozenset({Phase.CLOSED, Phase.FENCED}),
    Phase.CLOSED: frozenset(),
    Phase.FENCED: frozenset(),
}


@dataclass
class Owned:
    """A partition under a lease: its task, where its log was last committed, and how far it is on its way.

    sent: the offset of a commit that is on its way (empty: none is).
    renewed_s: when (monotonic) the lease was last asked for or renewed, so not later than the server saw it.
    corrupt: streams whose stored row was discarded, and why, until that is told.
    behind: the rows lack what chunks after this id did; they are replayed first (empty: nothing to replay).
    rows_at: where Redis has the rows stand, by what this owner stored last; empty: where the offset does.
    """

    lease: Lease
    task: Task
    offset: bytes
    renewed_s: float
    phase: Phase = Phase.GRANTED
    corrupt: dict[str, str] = field(default_factory=dict)
    behind: bytes = b""
    sent: bytes = b""
    rows_at: bytes = b""

    @property
    def settled_at(self) -> bytes:
        """Where Redis has the group stand; empty while a commit is on its way, or in doubt."""
        return b"" if self.sent else self.offset

    @property
    def partition(self) -> int:
        """Its number."""
        return self.lease.keys.partition

    def to(self, phase: Phase) -> None:
        """Step on. Raises RuntimeError at a step that is not legal: a defect of ours."""
        if phase not in LEGAL[self.phase]:
            raise RuntimeError(f"partition {self.partition}: {self.phase.value} cannot become {phase.value}")
        self.phase = phase
