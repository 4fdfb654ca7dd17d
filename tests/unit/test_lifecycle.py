"""The drawing, the table and the code say the same."""

from __future__ import annotations

import re

import pytest

from pipeline import lifecycle
from pipeline.broker.keys import Keys
from pipeline.broker.lease import Lease
from pipeline.lifecycle import LEGAL, Owned, Phase


def owned(phase: Phase) -> Owned:
    lease = Lease(Keys("calls", "digits", 3), "me", 1, 1000)
    return Owned(lease, None, b"0-0", 0.0, phase)  # type: ignore[arg-type]


@pytest.mark.parametrize("before", Phase)
@pytest.mark.parametrize("after", Phase)
def test_only_legal_steps_are_taken(before: Phase, after: Phase) -> None:
    partition = owned(before)
    if after in LEGAL[before]:
        partition.to(after)
        assert partition.phase is after
    else:
        with pytest.raises(RuntimeError, match=f"partition 3: {before.value} cannot become {after.value}"):
            partition.to(after)
        assert partition.phase is before


def test_every_way_ends_and_every_phase_is_drawn() -> None:
    drawn = set(re.findall(r"\b[A-Z]{6,}\b", lifecycle.__doc__ or ""))
    assert drawn == {phase.name for phase in Phase}
    ends = {phase for phase, after in LEGAL.items() if not after}
    assert ends == {Phase.CLOSED, Phase.FENCED}
    assert all(Phase.FENCED in after for phase, after in LEGAL.items() if phase not in ends)  # fenced at any moment
