"""`make soak`: many live streams for minutes. Does lag grow, does memory, how late are results?

Exit 0 only if lag did not grow, the worker's memory stayed flat and 99 % of results came within 50 ms.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import soundfile

from pipeline.broker.embedded import EmbeddedServer
from tests.bench import live

RECORDING = Path("pipeline/recordings/digits.flac")
LATENCY_MS = 50.0
GROWTH = 1.05  # of the worker's memory, from the first third (after its warm-up) to the last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--fsync", default="everysec", choices=["no", "everysec", "always"])
    given = parser.parse_args()
    recording, _ = soundfile.read(RECORDING, dtype="int16")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with (
            EmbeddedServer(path / "redis", fsync=given.fsync) as server,
            live.worker_process(server.url, path / "worker.log", publish="chunks") as worker,
        ):
            report = live.play(
                server.url,
                worker,
                psutil.Process(server.pid),
                recording,
                given.streams,
                given.minutes * 60,
            )
    return show(report)


def show(report: live.Report) -> int:
    third = max(1, len(report.samples) // 3)
    early, late = report.samples[third : 2 * third] or report.samples, report.samples[-third:]
    rss = [np.median([s.worker_rss for s in part]) / 2**20 for part in (early, late)]
    lag = [max(s.backlog for s in part) for part in (early, late)]
    audio_s = report.streams * report.seconds
    p50, p99, worst = (report.quantile(q) for q in (0.5, 0.99, 1.0))
    print(f"{report.streams} streams, {report.seconds:.0f} s at real-time pace, {report.chunks} chunks")
    print(f"latency from the due time to the result read: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {worst:.1f} ms")
    print(
        f"latency from the push: p50 {report.quantile(0.5, 'pushed_ms'):.1f} ms, "
        f"p99 {report.quantile(0.99, 'pushed_ms'):.1f} ms"
    )
    print(f"unread chunks, largest: {lag[0]} in the middle third, {lag[1]} in the last")
    print(f"worker memory: {rss[0]:.1f} MiB in the middle third, {rss[1]:.1f} MiB in the last")
    for name, spent in (
        ("worker", report.worker_cpu_s),
        ("server", report.server_cpu_s),
        ("producer", report.producer_cpu_s),
    ):
        each = spent / report.chunks * 1e6
        print(f"{name} CPU: {spent:.1f} s, {each:.0f} us a chunk, {audio_s / spent:.0f} x real time")
    failed = []
    if p99 > LATENCY_MS:
        failed.append(f"p99 {p99:.1f} ms is over {LATENCY_MS:.0f} ms")
    if lag[1] > 2 * max(lag[0], report.streams):
        failed.append("the lag grew")
    if rss[1] > GROWTH * rss[0]:
        failed.append("the worker's memory grew")
    print("FAILED: " + "; ".join(failed) if failed else "passed: no lag growth, memory flat, p99 within bound")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
