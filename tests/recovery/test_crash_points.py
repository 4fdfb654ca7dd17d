"""Named points at which a worker dies. Whatever the point, the next worker goes on and the verifier is silent."""

from __future__ import annotations

import signal

import pytest

from tests.harness import until
from tests.recovery.child import Point
from tests.recovery.conftest import Stage
from tests.recovery.scene import some_streams

READ, ROWS = "pipeline.broker.reader:read", "pipeline.broker.partition:load_rows"
RUN, STEP = "pipeline.task:run", "pipeline.batcher:Batcher.run_joined"
COMMIT, COMMITTED = "pipeline.broker.partition:Sending.__init__", "pipeline.broker.partition:Sending.outcomes"
CALL = "pipeline.broker.functions:Calls.__init__"
ACQUIRE, RENEW = "pipeline.broker.lease:acquire_many", "pipeline.broker.lease:renew"
RELEASE, LEAVE = "pipeline.broker.lease:release", "pipeline.broker.members:leave"
JOIN, JOINED = "pipeline.broker.members:joining", "pipeline.ownership:Ownership._joined"
TRIM = "pipeline.broker.retention:trimming"

POINTS: dict[str, Point] = {
    "before it is known to the others": Point(JOIN, "before"),
    "known to the others, owning nothing": Point(JOINED, "after"),
    "before the leases": Point(ACQUIRE, "before"),
    "with leases that it never heard of": Point(ACQUIRE, "after"),
    "before the first read": Point(READ, "before"),
    "before a later read": Point(READ, "before", 3),
    "after the read": Point(READ, "after"),
    "before the rows are loaded": Point(ROWS, "before"),
    "after the rows are loaded": Point(ROWS, "after"),
    "before the step": Point(RUN, "before"),
    "within the step, between two rounds": Point(STEP, "after", 2),
    "after the step": Point(RUN, "after"),
    "after a later step": Point(RUN, "after", 4),
    "before the commit": Point(COMMIT, "before"),
    "before a later commit": Point(COMMIT, "before", 4),
    "after the commit, its reply lost": Point(COMMITTED, "after"),
    "after a later commit, its reply lost": Point(COMMITTED, "after", 4),
    "between the commits of two partitions": Point(CALL, "between", about="sb_commit"),
    "between the commits of two partitions, later": Point(CALL, "between", 3, about="sb_commit"),
    "before a renewal": Point(RENEW, "before", 2),
    "after a renewal": Point(RENEW, "after", 2),
    "before the logs are trimmed": Point(TRIM, "before"),
    "while a log is trimmed": Point(TRIM, "after"),
    "after the logs are trimmed": Point(TRIM, "before", 5),
}

ON_LEAVING: dict[str, Point] = {
    "before the release": Point(RELEASE, "before"),
    "in the release, between two partitions": Point(CALL, "between", about="sb_release"),
    "after the release, its reply lost": Point(RELEASE, "after"),
    "released, and still counted among the living": Point(LEAVE, "before"),
}


@pytest.mark.parametrize("name", [*POINTS, *ON_LEAVING])
def test_a_crash(scene: Stage, name: str) -> None:
    """Half the chunks wait for the worker that dies; the other half comes while it is dead."""
    play = scene(some_streams())
    pieces = play.pieces()
    half = len(pieces) // 2
    play.push(pieces[:half])
    victim = play.worker({**POINTS, **ON_LEAVING}[name], trim_every_ms=100)
    if name in ON_LEAVING:
        assert play.drained(), play.told()
        victim.send(signal.SIGTERM)
    assert victim.died() == -signal.SIGKILL, play.told()
    play.push(pieces[half:])
    play.worker()
    assert play.drained(), play.told()
    verdict = play.verdict()
    assert verdict.silent, verdict
    assert verdict.results == verdict.chunks == len(pieces)


def test_a_crash_at_every_commit(scene: Stage) -> None:
    """Worker after worker dies behind its second commit, until nothing is left to commit."""
    play = scene(some_streams())
    play.push(play.pieces())
    deaths, point = 0, Point(COMMITTED, "after", 2)
    while not play.drained(patience_s=0.1):
        assert deaths < 30
        victim = play.worker(point, read_entries=48)
        until(lambda victim=victim: victim.died(0.01) is not None or play.drained(patience_s=0.0), "a death or the end")  # type: ignore[misc]
        deaths += victim.died(0.01) == -signal.SIGKILL
    assert deaths > 1
    assert play.verdict().silent
