"""A short chaos in every `make test`; the full one is `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.broker import topic as topics
from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.errors import BrokerUnavailable
from tests.chaos import listener
from tests.chaos.run import run
from tests.chaos.schedule import Counts, draw

SHORT = Counts(kills=5, leaves=1, joins=1, freezes=2, server_kills=1, cuts=4, delays=2, producer_kills=1)
FULL_S = 12 * 60


@pytest.mark.timeout(600)
def test_a_short_chaos(tmp_path: Path) -> None:
    """A quarter of a minute of everything: nothing lost, nothing twice, nothing in disorder, nothing different."""
    report = run(
        tmp_path / "run", seed=11, counts=SHORT, seconds=13, chunks=2000, open_streams=40, workers=4, row_every=(1, 6)
    )
    report.show()
    report.save(tmp_path / "report.json")
    assert report.passed, report.total.examples + report.told.examples + report.defects


@pytest.mark.timeout(600)
def test_a_short_chaos_of_a_primary_and_its_replica(tmp_path: Path) -> None:
    """The replica takes over, of a primary that is killed and of one that lives on, while workers die."""
    counts = Counts(3, leaves=0, joins=0, freezes=1, server_kills=0, cuts=2, delays=1, producer_kills=0, failovers=3)
    report = run(
        tmp_path / "run", seed=2, counts=counts, seconds=12, chunks=2000, open_streams=40, workers=4, pair=True
    )
    report.show()
    assert report.passed, report.total.examples + report.told.examples + report.defects


@pytest.mark.timeout(60)
def test_a_listener_does_not_wait_for_a_server_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails while the server is down must end, and tell."""
    monkeypatch.setattr(listener, "_LAST_S", 0.0)
    with EmbeddedServer(tmp_path / "redis") as server:
        with connect(server.url) as client:
            topics.create(client, topics.Topic("audio", 8000.0, "int16", 1, 2))
        found = listener.Listener(server.url, "audio", "digits")
    found.close()
    assert isinstance(found.failure, BrokerUnavailable)


def test_a_seed_is_a_schedule() -> None:
    counts = Counts.of(FULL_S / 60)
    assert draw(5, counts, FULL_S) == draw(5, counts, FULL_S) != draw(6, counts, FULL_S)
    assert all(0 <= event.at_s <= FULL_S for event in draw(5, counts, FULL_S))


def test_the_full_length_is_what_was_asked_for() -> None:
    """Bar 1 of issue 3."""
    counts = Counts.of(FULL_S / 60)
    assert counts.kills >= 200
    assert counts.server_kills >= 20
    assert counts.freezes >= 20
    assert counts.cuts >= 50
