"""Streams that come and go leave nothing behind; `make churn` does it with a million chunks, and watches memory."""

from __future__ import annotations

from pathlib import Path

from pipeline.broker.embedded import EmbeddedServer
from tests.bench import churn


def test_nothing_stays_of_streams_that_went(tmp_path: Path) -> None:
    plan = churn.Plan(streams=200, at_a_time=50, idle_ms=3000, outage_ms=500, tombstone_ms=1000, retention_ms=1000)
    with EmbeddedServer(tmp_path / "redis", fsync="no") as server:
        report = churn.run(server, tmp_path, plan)
    churn.plot(report, tmp_path / "churn.png")
    assert report.chunks == 200 * churn.CHUNKS
    assert report.exact == min(200, churn.SAMPLED)
    assert report.events > 0
    assert report.strange == []
    assert report.entries <= 2 * report.partitions
