"""Live streams at real-time pace: a server, worker processes and a producer, each a process of its own.

Open loop: every chunk has a due time from the schedule alone, and latency counts from it, so that a slow system
cannot slow down those who measure it (no coordinated omission).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from pipeline.consumer import Consumer
from pipeline.producer import Producer

CHUNK_MS = 100


@dataclass
class Sample:
    """One look at the worker and the server."""

    at_s: float
    worker_rss: int
    server_rss: int
    backlog: int


@dataclass
class Report:
    """What a live run showed. Latencies in ms: `pushed` from the push, `due` from the scheduled time."""

    streams: int
    seconds: float
    chunks: int
    pushed_ms: np.ndarray
    due_ms: np.ndarray
    worker_cpu_s: float
    server_cpu_s: float
    producer_cpu_s: float
    samples: list[Sample] = field(default_factory=list)

    def quantile(self, q: float, which: str = "due_ms") -> float:
        return float(np.quantile(getattr(self, which), q))


@contextmanager
def worker_process(url: str, log: Path, **settings: object) -> Iterator[psutil.Process]:
    """`statebelt worker`, ready."""
    env = {f"STATEBELT_{k.upper()}": str(v) for k, v in {"url": url, "log_format": "json", **settings}.items()}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "worker"], env={**os.environ, **env}, stdout=out, stderr=out
        )
    try:
        while '"event": "ready"' not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.02)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def play(
    url: str,
    worker: psutil.Process,
    server: psutil.Process,
    recording: np.ndarray,
    streams: int,
    seconds: float,
    watch_every_s: float = 5.0,
) -> Report:
    """Push `recording` (looped, each stream from another place) on `streams` streams for `seconds`.

    A child process produces; this one only consumes and watches. Needs a worker with publish=chunks.
    """
    with Consumer("audio", "digits", url=url) as consumer:
        consumer.open()
        before = cpu_s(worker), cpu_s(server)
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.live", url, str(streams), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdin is not None
        child.stdin.write(recording.astype("<i2").tobytes())
        child.stdin.close()
        got: dict[tuple[str, int], float] = {}
        samples: list[Sample] = []
        ends, began_s, watch_s = 0, time.monotonic(), 0.0
        while ends < streams:
            for result in consumer.read(timeout_s=1.0):
                got[result.stream, result.seq] = time.time()
                ends += result.end
            now = time.monotonic() - began_s
            if now >= watch_s:
                backlog = sum(waiting(consumer))
                samples.append(Sample(now, worker.memory_info().rss, server.memory_info().rss, backlog))
                watch_s += watch_every_s
            if child.poll() not in (None, 0):
                raise RuntimeError("the producer failed")
            if now > seconds + 60:
                raise RuntimeError(f"{streams - ends} of {streams} streams did not end: the worker cannot keep up")
        after = cpu_s(worker), cpu_s(server)
    assert child.stdout is not None
    sent = json.loads(child.stdout.read())
    child.wait()
    chunks = sent["chunks"]
    got_s = np.array([got[stream, seq] for stream, seq, _, _ in chunks])
    pushed, due = (np.array([chunk[i] for chunk in chunks]) for i in (2, 3))
    return Report(
        streams,
        seconds,
        len(chunks),
        (got_s - pushed) * 1e3,
        (got_s - due) * 1e3,
        after[0] - before[0],
        after[1] - before[1],
        sent["cpu_s"],
        samples,
    )


def waiting(consumer: Consumer) -> list[int]:
    """Unread chunks of every partition."""
    from pipeline.broker.appender import backlog

    return list(backlog(consumer._client, consumer.topic.name, consumer.topic.partitions).values())


def produce(url: str, streams: int, seconds: float, recording: np.ndarray) -> dict[str, object]:
    """Every stream a chunk each CHUNK_MS, the streams spread evenly over that time."""
    chunks: list[tuple[str, int, float, float]] = []
    with Producer("audio", url=url) as producer:
        size = int(producer.spec.sample_rate_hz * CHUNK_MS / 1000)
        places = [n * 7919 for n in range(streams)]
        count = int(seconds * 1000 / CHUNK_MS)
        began = time.time() + 0.2
        ticks = np.array_split(np.arange(streams), min(streams, 20))
        for turn in range(count):
            for tick, members in enumerate(ticks):
                due = began + (turn + tick / len(ticks)) * CHUNK_MS / 1000
                if (wait := due - time.time()) > 0:
                    time.sleep(wait)
                items = []
                for n in members.tolist():
                    at = (places[n] + turn * size) % (len(recording) - size)
                    items.append((f"live-{n}", recording[at : at + size], turn == count - 1))
                pushed = time.time()
                seqs = producer.push_many(items)
                chunks += [(item[0], seq, pushed, due) for item, seq in zip(items, seqs, strict=True)]
    return {"chunks": chunks, "cpu_s": time.process_time()}


if __name__ == "__main__":
    pcm = np.frombuffer(sys.stdin.buffer.read(), "<i2")
    json.dump(produce(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), pcm), sys.stdout)
