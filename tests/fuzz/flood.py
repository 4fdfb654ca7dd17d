"""`make flood`: a hundred thousand malformed entries among good streams, past our producers, to a real worker process.

Exit 0 only if the worker lives, every malformed entry lies in the dead letters under a right reason, and every good
stream is byte for byte what the model yields on its whole signal.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from pipeline.broker.admin import dead_letters
from pipeline.broker.appender import backlog
from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.consumer import Consumer
from tests import zoo
from tests.fuzz import entries
from tests.fuzz.entries import GROUP, MAX_CHUNK_BYTES, PARTITIONS, TOPIC, Draft, assert_put_aside
from tests.harness import WorkerProcess, assert_exact, collect, cut_up, lively, make_producer, random_cut, until

WAITING = 5_000
"""Unread entries at which the flood waits, below what would hold back a producer."""


@dataclass
class Report:
    """What a flood showed; memory of the worker before the first bad entry, at its largest, and at the end."""

    malformed: int
    good_chunks: int
    streams: int
    seconds: float
    reasons: Counter[str]
    cut: int
    worker_mib: tuple[float, float, float]
    worker_cpu_s: float

    def __str__(self) -> str:
        rows = "\n".join(f"  {reason:16} {n:7}" for reason, n in sorted(self.reasons.items()))
        first, most, last = self.worker_mib
        return (
            f"{self.malformed} malformed entries among {self.good_chunks} good chunks of {self.streams} streams\n"
            f"{self.seconds:.1f} s; worker: {self.worker_cpu_s:.1f} s of CPU, alive, memory {first:.0f} MiB before, "
            f"{most:.0f} at most, {last:.0f} at the end\n"
            f"in dead letters, each under its own id with a right reason ({self.cut} cut to their bounds):\n{rows}\n"
            f"good streams: {self.streams} of {self.streams} byte-identical to the whole run"
        )


def run(url: str, folder: Path, *, malformed: int, streams: int, seed: int = 0) -> Report:
    """Needs an empty server. Raises AssertionError where the property does not hold."""
    bundle, rng = zoo.bundle("sensor"), Random(seed)
    path = folder / "sensor.onnx"
    path.write_bytes(zoo.ZOO["sensor"]())
    signals = lively(bundle, streams, blocks=200)
    names = list(signals)
    batches = list(cut_up(bundle, signals, random_cut, seed))
    pushed: dict[tuple[int, bytes], Draft] = {}
    began_s, mib = time.monotonic(), []
    with (
        connect(url) as client,
        make_producer(url, bundle, max_chunk_bytes=MAX_CHUNK_BYTES) as producer,
        Consumer(TOPIC, GROUP, url=url, start="beginning") as consumer,
        WorkerProcess(url, path, folder, max_chunk_bytes=MAX_CHUNK_BYTES, log_level="error") as process,
    ):
        worker = psutil.Process(process.process.pid)

        def room() -> bool:
            assert process.process.poll() is None, process.log.read_text()
            return max(backlog(client, TOPIC, PARTITIONS).values()) < WAITING

        for n, batch in enumerate(batches):
            producer.push_many(batch)
            if n == 0:
                until(lambda: any(backlog(client, TOPIC, PARTITIONS).values()) is False, "the first chunks")
                mib.append(worker.memory_info().rss / 2**20)
            while len(pushed) < malformed * (n + 1) // len(batches):
                due = min(500, malformed * (n + 1) // len(batches) - len(pushed))
                drafts = [entries.malformed(rng, names) for _ in range(due)]
                pushed.update(zip(entries.push(client, drafts), drafts, strict=True))
                until(room, "the worker to keep up", 120)
            mib.append(worker.memory_info().rss / 2**20)
        found = collect(consumer, names)
        until(lambda: not any(backlog(client, TOPIC, PARTITIONS).values()), "the worker to have read everything", 120)
        mib.append(worker.memory_info().rss / 2**20)
        took_s, cpu = time.monotonic() - began_s, worker.cpu_times()
        assert process.process.poll() is None
        assert_exact(bundle, signals, found)
        assert not [result.notes for results in found.values() for result in results if result.notes]
        reasons: Counter[str] = Counter()
        cut = 0
        for partition in range(PARTITIONS):
            after = b"0-0"
            while letters := dead_letters(client, TOPIC, GROUP, [partition], after, 1000):
                for letter in letters:
                    assert_put_aside(pushed.pop((partition, letter.id)), letter.fields)
                    reasons[letter.fields[b"reason"].decode()] += 1
                    cut += b"cut" in letter.fields
                after = letters[-1].id
        assert not pushed, f"{len(pushed)} malformed entries are in no dead letter"
    good = sum(map(len, batches))
    memory = (mib[0], max(mib), mib[-1])
    return Report(malformed, good, streams, took_s, reasons, cut, memory, cpu.user + cpu.system)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--malformed", type=int, default=100_000)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder) / "redis", fsync="everysec") as server:
        print(run(server.url, Path(folder), malformed=given.malformed, streams=given.streams, seed=given.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
