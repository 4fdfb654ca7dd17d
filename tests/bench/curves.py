"""How statebelt's cost of a chunk changes with known streams, partitions and workers, and how soon a worker answers."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

from pipeline.broker.connection import connect
from pipeline.broker.keys import Keys
from tests.bench.contest import Ground, empty, match
from tests.bench.cores import CORES
from tests.bench.load import WIRES, Load
from tests.bench.subject import Subject

KNOWN = (10, 1000, 10_000)
PARTITIONS = (1, 4, 16, 64)
ACTIVE, EVERY_MS = 10, 10.0
"""Known streams: ten of them have a chunk every 10 ms, 1,000 chunks a second, however many are known."""


def known(ground: Ground, subject: Subject, count: int, seconds: float) -> dict[str, Any]:
    """The cost of a chunk at a given rate of chunks, when so many streams have state and take turns."""
    with match(ground, subject) as running:
        turns = max(1, round(seconds * 1000 / EVERY_MS))
        active = min(ACTIVE, count)
        return running.play(Load(subject.wire, "known", active, count, turns, EVERY_MS, 1, end=False, warm=True))


def partitions(ground: Ground, subject: Subject, count: int, streams: int, seconds: float) -> dict[str, Any]:
    """The cost of a chunk of as many live streams, spread over so many partitions."""
    with match(ground, replace(subject, partitions=count)) as running:
        running.drain(min(streams, 256), 2)
        return running.live(streams, seconds)


def workers(ground: Ground, subject: Subject, count: int, streams: int, seconds: float) -> dict[str, Any]:
    """The cost of a chunk with `streams` live streams for each of one or two workers."""
    with match(ground, subject) as running:
        running.drain(min(streams, 256), 2)
        if count == 1:
            return running.live(streams, seconds)
        with subject.running(ground.url, ground.folder, CORES.second) as second:
            _settle(ground, count, subject.partitions)
            running.helpers.append(second)
            return running.live(streams * count, seconds)


def _settle(ground: Ground, count: int, partitions: int) -> None:
    """Until each worker owns its share of the partitions."""
    end_s = time.monotonic() + 10
    keys = [Keys("audio", "digits", n).lease for n in range(partitions)]
    with connect(ground.url) as client:
        while time.monotonic() < end_s:
            held = Counter((lease or b" ").split(b" ", 1)[1] for lease in client.mget(keys))
            if len(held) == count and max(held.values()) - min(held.values()) <= 1:
                return
            time.sleep(0.05)
    raise RuntimeError(f"{count} workers did not share the partitions in ten seconds: {held}")


def start_up(ground: Ground, subject: Subject) -> float:
    """Seconds from the start of the process to the first result that can be read, its chunk waiting already."""
    empty(ground.url)
    subject.prepare(ground.url)
    first = Load(subject.wire, "first", 1, 1, 1, turn_ms=0)
    WIRES[subject.wire](ground.url)([(first.name(0), first.chunk(ground.recording, 0, 0), False)])
    began_s = time.monotonic()
    with subject.running(ground.url, ground.folder, CORES.worker), connect(ground.url) as client:
        while not client.exists(*subject.out):
            time.sleep(0.002)
        return time.monotonic() - began_s
