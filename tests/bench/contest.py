"""A contender on Redis, measured: its maximum, then live at a part of that maximum, open loop.

    drain   the worker is stopped (SIGSTOP), a backlog is pushed, it goes on: how fast is it when there is always work?
    flood   more live streams than the drain says it bears: how many chunks a second come out? That is the maximum, of
            the worker and of the server and all who share cores with it
    live    so many streams that they are a given part of the maximum; a chunk a stream every 100 ms, whatever happens

What was measured is also compared: a sample of its streams with the whole run, byte for byte.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import psutil

from pipeline.broker.connection import connect
from pipeline.bundle import Bundle, load
from tests.bench import live
from tests.bench.cores import CORES, busy_s
from tests.bench.figures import CHUNK_MS, CHUNK_US, grid
from tests.bench.load import Load, Pusher, Sent
from tests.bench.reading import Reading
from tests.bench.subject import Subject

SAMPLED = 6
"""Streams of every run that are compared with the whole signal."""


@dataclass(frozen=True)
class Ground:
    """What all share: the server, its folder, the recording (16 kHz, int16)."""

    url: str
    server: psutil.Process
    folder: Path
    recording: np.ndarray

    @property
    def pcm(self) -> Path:
        """The recording as a file, for producers."""
        return self.folder / "recording.npy"


class Match:
    """One contender with its worker running, from an empty server on."""

    def __init__(self, ground: Ground, subject: Subject, worker: psutil.Process, bundle: Bundle) -> None:
        self.ground, self.subject, self.worker = ground, subject, worker
        self.helpers: list[psutil.Process] = []
        self.compared, self.furthest = 0, 0.0
        self._bundle = bundle
        self._reading = Reading(connect(ground.url), subject.out, subject.parse)
        self._loads = 0

    def play(self, load_: Load, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Push `load_`, read all results, compare. Times in us a chunk, latencies in ms.

        `others` is the part of the worker's core that went to strangers meanwhile: how far to trust the rest.
        """
        ground, reading = self.ground, self._reading
        every_chunk = self._every_chunk
        sample = np.unique(np.linspace(0, load_.known - 1, SAMPLED).astype(int)).tolist()
        keep = {load_.name(n).encode() for n in sample}
        reading.forget()

        def done() -> bool:
            return len(reading.at) >= load_.chunks if every_chunk else reading.ended >= load_.known

        workers = [self.worker, *self.helpers]
        pusher = Pusher(ground.url, load_, ground.pcm, ground.folder, CORES.producer)
        try:
            pusher.ready()
            if load_.warm:
                reading.until(lambda: len(reading.at) >= load_.known, keep, 30 + load_.known / 500, pusher.check)
                reading.at.clear()
            if not load_.turn_ms:
                pusher.go()
                sent = pusher.wait()  # all of it, before anybody reads
                meanwhile()
            before = [live.cpu_s(process) for process in (ground.server, *workers)]
            reader_s = time.process_time()
            began_s, busy = time.time(), busy_s(CORES.worker)
            if load_.turn_ms:
                pusher.go()
            least = load_.chunks if every_chunk else load_.known
            reading.until(done, keep, load_.seconds + 60, pusher.check, least)
            reader_s = time.process_time() - reader_s
            others_s = busy_s(CORES.worker) - busy
            after = [live.cpu_s(process) for process in (ground.server, *workers)]
            if load_.turn_ms:
                sent = pusher.wait()
        finally:
            pusher.close()
        took_s = time.time() - began_s
        for n in sample if self.subject.compared else ():
            entries = reading.kept[load_.name(n).encode()]
            whole_signal = load_.signal(ground.recording, n)
            far = self.subject.distance(self._bundle, whole_signal, entries, load_.end)
            self.compared, self.furthest = self.compared + 1, max(self.furthest, far)
        server_s, *each_s = (b - a for a, b in zip(before, after, strict=True))
        us = 1e6 / load_.chunks
        return {
            "streams": load_.streams,
            "chunks": load_.chunks,
            "us": sum(each_s) * us,
            "wall_us": (reading.last_s - began_s) * us,
            "server_us": server_s * us,
            "producer_us": sent.cpu_s * us,
            "reader_us": reader_s * us,
            "each_us": [spent * us for spent in each_s],
            "others": max(0.0, others_s - each_s[0]) / took_s,
            "rss_mib": self.worker.memory_info().rss / 2**20,
            **(self._latencies(load_, sent) if every_chunk and load_.turn_ms else {}),
        }

    def _latencies(self, load_: Load, sent: Sent) -> dict[str, Any]:
        at = self._reading.at
        names = {n: load_.name(n).encode() for n in range(load_.known)}
        pairs = zip(sent.stream.tolist(), sent.seq.tolist(), strict=True)
        got_s = np.array([at[names[n], b"%d" % seq] for n, seq in pairs])
        pushed, due = grid((got_s - sent.pushed_s) * 1e3), grid((got_s - sent.due_s) * 1e3)
        late = float(np.percentile((sent.pushed_s - sent.due_s) * 1e3, 99))
        return {"pushed_ms": pushed, "due_ms": due, "producer_late_p99_ms": late}

    def drain(self, streams: int, turns: int) -> dict[str, Any]:
        """A backlog: what the contender does when it never has to wait for work."""
        load_ = Load(self.subject.wire, self._prefix(), streams, streams, turns, turn_ms=0, ticks=max(1, streams // 64))
        self.worker.send_signal(signal.SIGSTOP)
        try:
            return self.play(load_, lambda: self.worker.send_signal(signal.SIGCONT))
        finally:
            self.worker.send_signal(signal.SIGCONT)

    def live(self, streams: int, seconds: float) -> dict[str, Any]:
        """Streams that have begun, live for so long: that hundreds begin in the same tenth of a second is another load,
        and would be a fiftieth of five seconds."""
        turns = max(1, round(seconds * 1000 / CHUNK_MS))
        # Who waits for the first results needs one of each stream, and `events` publishes none of most.
        warm = self._every_chunk
        return self.play(Load(self.subject.wire, self._prefix(), streams, streams, turns, warm=warm))

    def flood(self, streams: int, seconds: float) -> dict[str, Any]:
        """More live streams than are borne: `max_streams` is how many are. The first third is not counted."""
        load_ = Load(self.subject.wire, self._prefix(), streams, streams, max(1, round(seconds * 1000 / CHUNK_MS)))
        began_s = time.time()
        found = self.play(load_)
        times = np.sort(np.array(list(self._reading.at.values())))
        began_s = max(began_s, times[0])
        window = (began_s + load_.seconds / 3, began_s + load_.seconds)
        share = np.count_nonzero((times >= window[0]) & (times < window[1])) / len(times)
        rate = share * load_.chunks / (window[1] - window[0])
        return {**found, "max_streams": rate * CHUNK_MS / 1000}

    @property
    def _every_chunk(self) -> bool:
        return self.subject.settings.get("publish", "chunks") == "chunks"

    def _prefix(self) -> str:
        self._loads += 1
        return f"load{self._loads}"


def empty(url: str) -> None:
    """No data, and none in the append-only file either: it is not rewritten while anybody is measured."""
    with connect(url) as client:
        client.flushall()
        client.bgrewriteaof()
        while any(client.info("persistence")[f"aof_rewrite_{what}"] for what in ("in_progress", "scheduled")):
            time.sleep(0.01)


@contextmanager
def match(ground: Ground, subject: Subject) -> Iterator[Match]:
    """An empty server, the contender's worker on its core."""
    empty(ground.url)
    subject.prepare(ground.url)
    with subject.running(ground.url, ground.folder, CORES.worker) as worker:
        yield Match(ground, subject, worker, load(subject.bundle))


@dataclass(frozen=True)
class Pace:
    """How long a turn of one contender is, how many floods it has, and at which of PARTS it is live after them."""

    drain_s: float
    flood_s: float
    seconds: float
    parts: tuple[str, ...]
    floods: int = 1


FLOOD, PARTS = 1.1, {"half": 0.5, "most": 0.9}


def turn(
    ground: Ground,
    subject: Subject,
    pace: Pace,
    guess_us: float,
    streams: int,
    ceiling_us: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """One turn of a contender: drain, floods, live at half and at 90 % of the maximum, which is their median.

    Args:
        guess_us: of a chunk, so that the backlog lasts about `pace.drain_s`.
        streams: of the backlog.
        ceiling_us: measures the ceiling: right before and right after every flood, for a shared machine's speed moves
            by a third within a minute. A flood's `ceiling_us` is the mean of both.
    """
    with match(ground, subject) as running:
        running.drain(streams, 2)  # code, caches, the first rows
        turns = max(4, min(round(pace.drain_s * 1e6 / guess_us / streams), 30_000 // streams))
        found: dict[str, Any] = {"drain": running.drain(streams, turns)}
        flooded = max(2, round(FLOOD * CHUNK_US / found["drain"]["wall_us"]))
        found["floods"] = []
        around = [ceiling_us()] if ceiling_us else []
        for _ in range(pace.floods):
            found["floods"].append(running.flood(flooded, pace.flood_s))
            if ceiling_us:
                around.append(ceiling_us())
                found["floods"][-1]["ceiling_us"] = mean(around[-2:])
        most = found["max_streams"] = median(flood["max_streams"] for flood in found["floods"])
        for part in pace.parts:
            found[part] = running.live(max(1, round(most * PARTS[part])), pace.seconds)
        return {**found, "compared": running.compared, "furthest": running.furthest}
