"""`make bench`: where the time of a 100 ms chunk goes on this machine, from the model alone to the whole path.

Ratios of one run mean something, absolute times on a shared machine little: every row is the median of several
rounds in which all contenders take turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import soundfile
from rich.console import Console
from rich.table import Table

from pipeline.batcher import Batcher
from pipeline.broker.embedded import EmbeddedServer
from pipeline.bundle import Bundle, load
from tests.bench import live, vad
from tests.bench.soak import RECORDING

ROUNDS, CHUNKS = 7, 10
FRAMES = 10


def model_alone(bundle: Bundle, batch: int) -> Callable[[], float]:
    """Seconds a chunk of ten ready frames."""
    x = np.random.default_rng(0).random((batch, FRAMES, bundle.manifest.model.features)).astype(np.float32)
    state = bundle.model.initial_state(batch)

    def once() -> float:
        began = time.perf_counter()
        for _ in range(CHUNKS):
            bundle.model.step(x, state)
        return (time.perf_counter() - began) / CHUNKS / batch

    return once


def batcher(bundle: Bundle, streams: int, recording: np.ndarray) -> Callable[[], float]:
    """Seconds a chunk of 100 ms of samples: frontend, model, head, rows."""
    made = Batcher(bundle)
    rows = np.repeat(np.array([made.layout.blank]), streams)
    size = int(bundle.manifest.input.sample_rate_hz / 10)
    ends = np.zeros(streams, bool)
    places = np.arange(streams) * 7919 % (len(recording) - (CHUNKS + 1) * size)

    def once() -> float:
        began = time.perf_counter()
        for turn in range(CHUNKS):
            made.run(rows, [recording[p + turn * size :][:size, None] for p in places], ends)
        return (time.perf_counter() - began) / CHUNKS / streams

    return once


def main() -> None:
    bundle = load("digits")
    recording, _ = soundfile.read(RECORDING, dtype="int16")
    contenders = {f"model alone, {b} streams": model_alone(bundle, b) for b in (1, 16, 64)}
    contenders |= {f"frontend, model, head, {b} streams": batcher(bundle, b, recording) for b in (1, 16, 64, 256)}
    for once in contenders.values():
        once()
    taken = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, once in contenders.items():
            taken[name].append(once() * 1e6)
    table = Table("", "us a 100 ms chunk", "spread", "x model at 64", title=f"one core, median of {ROUNDS} rounds")
    base = float(np.median(taken["model alone, 64 streams"]))
    for name, us in taken.items():
        middle = float(np.median(us))
        table.add_row(name, f"{middle:.0f}", f"{min(us):.0f}-{max(us):.0f}", f"{middle / base:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with (
            EmbeddedServer(path / "redis") as server,
            live.worker_process(server.url, path / "worker.log", publish="chunks") as worker,
        ):
            report = live.play(server.url, worker, psutil.Process(server.pid), recording, streams=200, seconds=20)
    for name, spent in (("worker", report.worker_cpu_s), ("server", report.server_cpu_s)):
        us = spent / report.chunks * 1e6
        table.add_row(f"the whole path, 200 live streams: {name} CPU", f"{us:.0f}", "", f"{us / base:.2f}")
    Console().print(table)
    p50, p99 = (report.quantile(q, "pushed_ms") for q in (0.5, 0.99))
    print(f"push to result: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    vad.main()


if __name__ == "__main__":
    main()
