"""Malformed entries among good ones, through a real worker: it lives, each is put aside with its reason, and the good
streams (whose names most of the bad ones bear) do not change by a byte."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.broker.admin import dead_letters, drop_dead
from pipeline.broker.appender import backlog
from pipeline.consumer import Consumer
from pipeline.worker import Worker
from tests import zoo
from tests.fuzz import entries, flood
from tests.fuzz.entries import FAULTS, GROUP, MAX_CHUNK_BYTES, PARTITIONS, TOPIC, Draft, Fault, assert_put_aside
from tests.harness import assert_exact, collect, cut_up, lively, make_producer, random_cut, until, worker

SHORT = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
BUNDLE = zoo.bundle("sensor")


class Room:
    """A producer, a consumer and a hostile client around one worker that lives through all examples of a test."""

    def __init__(self, url: str, client: redis.Redis, running: Worker) -> None:
        self.client, self.running = client, running
        self.producer = make_producer(url, BUNDLE, max_chunk_bytes=MAX_CHUNK_BYTES)
        self.consumer = Consumer(TOPIC, GROUP, url=url, start="beginning")
        self._lives, self._resent = count(), 0

    def close(self) -> None:
        self.producer.close()
        self.consumer.close()

    def play(self, rng: Random, kinds: Sequence[list[Fault]]) -> None:
        """Good streams, and between their chunks an entry for each of `kinds`: with these faults, or a late resend."""
        life = next(self._lives)
        signals = {f"{life}-{name}": x for name, x in lively(BUNDLE, 4, blocks=20).items()}
        batches = list(cut_up(BUNDLE, signals, random_cut, seed=life))
        places = [rng.randrange(len(batches)) for _ in kinds]
        begun: list[str] = []
        pushed: dict[tuple[int, bytes], Draft] = {}
        for n, batch in enumerate(batches):
            self.producer.push_many(batch)
            begun += [name for name, _, _ in batch if name not in begun]
            for faults in (kind for kind, place in zip(kinds, places, strict=True) if place == n):
                stream = rng.choice(begun)
                # Its seq is far below all that the producer gives: without a fault, it is a late resend.
                entry = entries.well_formed(rng, stream, rng.randrange(99))
                entry.reasons |= {fault(rng, entry) for fault in faults}
                [where] = entries.push(self.client, [entry])
                if faults:
                    pushed[where] = entry
                else:
                    self._resent += 1
        found = collect(self.consumer, list(signals))
        until(lambda: not any(backlog(self.client, TOPIC, PARTITIONS).values()), "the worker to have read everything")
        assert_exact(BUNDLE, signals, found)
        assert not [result.notes for results in found.values() for result in results if result.notes]
        until(lambda: self.running.counts["duplicates"] == self._resent, f"{self._resent} duplicates counted")
        letters = dead_letters(self.client, TOPIC, GROUP, range(PARTITIONS), count=10_000)
        try:
            assert {(letter.partition, letter.id) for letter in letters} == set(pushed)
            for letter in letters:
                assert_put_aside(pushed[letter.partition, letter.id], letter.fields)
        finally:  # the next example, also the one that shrinks this, finds none of them
            for letter in letters:
                drop_dead(self.client, TOPIC, GROUP, letter.partition, [letter.id])


@pytest.fixture
def room(url: str, redis_client: redis.Redis) -> Iterator[Room]:
    make_producer(url, BUNDLE).close()  # creates the topic
    with worker(url, BUNDLE, max_chunk_bytes=MAX_CHUNK_BYTES) as running:
        room = Room(url, redis_client, running)
        yield room
        room.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault(room: Room, fault: Fault) -> None:
    room.play(Random(fault.__name__), [[fault]] * 12 + [[]] * 3)


def test_faults_in_any_company(room: Room) -> None:
    faults = st.lists(st.sampled_from(FAULTS), max_size=3, unique_by=lambda fault: fault.__name__)

    @SHORT
    @given(st.integers(0, 2**32), st.lists(faults, min_size=1, max_size=12))
    def any_company(seed: int, kinds: list[list[Fault]]) -> None:
        room.play(Random(seed), kinds)

    any_company()


def test_anything_at_all(room: Room) -> None:
    """Names and values of no design."""
    value = st.binary(max_size=300) | st.sampled_from([b"stream", b"seq", b"data", b"0", b"1", b"s-1"])
    pairs = st.lists(st.tuples(st.sampled_from(entries.KNOWN) | value, value), min_size=1, max_size=8)

    def has_fault(pairs: list[tuple[bytes, bytes]]) -> bool:
        fields = dict(pairs)
        named = set(fields) <= set(entries.KNOWN) and set(entries.KNOWN[:3]) <= set(fields)
        twice = len(fields) < len(pairs)
        return twice or not named or not fields[b"seq"].isdigit() or len(fields[b"data"]) % entries.SAMPLE_BYTES != 0

    def arbitrary(pairs: list[tuple[bytes, bytes]]) -> Fault:
        def fault(_: Random, entry: Draft) -> str:
            entry.pairs = pairs
            entry.reasons |= entries.REASONS
            return "unknown_field"

        return fault

    @SHORT
    @given(st.integers(0, 2**32), st.lists(pairs.filter(has_fault), min_size=1, max_size=8))
    def anything(seed: int, drafts: list[list[tuple[bytes, bytes]]]) -> None:
        room.play(Random(seed), [[arbitrary(pairs)] for pairs in drafts])

    anything()


def test_a_small_flood(url: str, tmp_path: Path) -> None:
    report = flood.run(url, tmp_path, malformed=600, streams=20, seed=3)
    assert sum(report.reasons.values()) == 600
    assert set(report.reasons) == entries.REASONS


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_flood(url: str, tmp_path: Path) -> None:
    report = flood.run(url, tmp_path, malformed=100_000, streams=100, seed=3)
    print(report)
    assert sum(report.reasons.values()) == 100_000


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="no atheris for this Python")
def test_guided_by_coverage(tmp_path: Path) -> None:
    """Some runs, to see that it works; `make fuzz` runs on."""
    # Linux lets a child begin with its parent's peak of memory, and that of this suite is over libFuzzer's bound.
    options = ["-runs=1500", "-seed=1", "-rss_limit_mb=8192", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, "-m", "tests.fuzz.guided", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-5000:]
