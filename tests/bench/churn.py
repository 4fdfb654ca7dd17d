"""`make churn`: an hour of short calls in a few minutes. 50,000 streams come, speak and go; does anything stay behind?

A quarter of the streams is left without an end, to expire. Everything that keeps state for a while (rows, tombstones,
producers' stands, logs) is told to keep it for seconds, so that a run sees many generations. Pushed as fast as the
bound on the backlog allows.

Exit 0 only if
- memory is flat: the median of the last quarter of the run is at most 1.05 times that of the second quarter, for the
  worker's resident set and for what the server says it uses (the first quarter is warm-up: buffers, code, the belt);
- no key is left at the end but those of topic, group and partition (see `CONSTANT`), each log of at most one entry a
  partition: the last chunk that was committed, and what it yielded (a trim never takes the offset's own chunk);
- a random sample of the streams yielded, byte for byte, what the model yields on the whole signal.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import redis
import soundfile

from pipeline.broker.appender import backlog
from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.bundle import SHIPPED, load
from pipeline.consumer import Consumer, Result
from pipeline.producer import Producer
from tests.bench.soak import RECORDING
from tests.harness import WorkerProcess, make_producer, spoken, until, whole

TOPIC, GROUP = "audio", "digits"
GROWTH = 1.05
CHUNK_SAMPLES, CHUNKS = 400, 20  # 50 ms each, a second in all
UNENDED = 4  # one stream in so many has no end
SAMPLED = 200

CONSTANT = {
    r"sb:audio:meta": "the topic",
    r"sb:\{audio\}:digits:workers": "the register of workers (expires with the last of them)",
    r"sb:\{audio/\d+\}:in": "the log, with its last id and the group's offset",
    r"sb:\{audio/\d+\}:digits:out": "the results log, with its last id",
    r"sb:\{audio/\d+\}:digits:dead": "the log of dead letters (none here)",
    r"sb:\{audio/\d+\}:digits:epoch": "the epoch",
    r"sb:\{audio/\d+\}:digits:lease": "the lease, while a worker holds it",
    r"sb:\{audio/\d+\}:digits:marks": "what trim knows of the age of results",
}
"""All keys that may be there when no stream is: their number depends on topics, groups and partitions alone."""


@dataclass
class Plan:
    """How many streams of CHUNKS chunks, how many at a time, and for how long things are kept."""

    streams: int = 50_000
    at_a_time: int = 1_000
    idle_ms: int = 10_000
    outage_ms: int = 5_000
    tombstone_ms: int = 5_000
    retention_ms: int = 5_000
    seed: int = 0

    @property
    def settings(self) -> dict[str, object]:
        return {
            "idle_ms": self.idle_ms,
            "outage_ms": self.outage_ms,
            "tombstone_ms": self.tombstone_ms,
            "input_retention_ms": self.retention_ms,
            "results_retention_ms": self.retention_ms,
            "trim_every_ms": 500,
        }


@dataclass
class Report:
    """What a run showed. `samples` are (seconds, worker RSS, server memory, server RSS, keys), sizes in bytes."""

    plan: Plan
    seconds: float = 0.0
    chunks: int = 0
    samples: list[tuple[float, int, int, int, int]] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    strange: list[str] = field(default_factory=list)
    entries: int = 0
    partitions: int = 0
    exact: int = 0
    events: int = 0
    waited_s: float = 0.0
    counts: dict[str, object] = field(default_factory=dict)

    def growth(self, column: int) -> tuple[float, float]:
        """Medians of the second and of the last quarter, in MiB."""
        pushing = [sample for sample in self.samples if sample[0] <= self.seconds]
        quarter = max(1, len(pushing) // 4)
        second, last = pushing[quarter : 2 * quarter] or pushing, pushing[-quarter:]
        early, late = (float(np.median([sample[column] for sample in part])) / 2**20 for part in (second, last))
        return early, late

    def failures(self) -> list[str]:
        failed = [f"{len(self.strange)} keys are left, such as {self.strange[:3]}"] if self.strange else []
        if self.entries > 2 * self.partitions:
            failed.append(f"{self.entries} entries are left in {self.partitions} partitions")
        for name, column in (("worker", 1), ("server", 2)):
            early, late = self.growth(column)
            if late > GROWTH * early:
                failed.append(f"the {name}'s memory grew from {early:.1f} to {late:.1f} MiB")
        return failed


@contextmanager
def environment(settings: dict[str, object]) -> Iterator[None]:
    """Producers take what they share with workers from the environment: here for as long as this lasts."""
    names = {f"STATEBELT_{name.upper()}": str(value) for name, value in settings.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class Churn:
    """Streams that come and go: which live, where each is, what the sampled ones yielded."""

    def __init__(self, plan: Plan, recording: np.ndarray) -> None:
        self.plan, self._recording = plan, recording
        self._rng = np.random.default_rng(plan.seed)
        self._live: dict[int, int] = {}
        self._next = 0
        sampled = self._rng.choice(plan.streams, min(SAMPLED, plan.streams), replace=False)
        self.sampled = {f"call-{n}": int(n) for n in sampled}
        self.found: defaultdict[str, list[Result]] = defaultdict(list)

    def ends(self, n: int) -> bool:
        return n % UNENDED != 0

    def signal(self, n: int) -> np.ndarray:
        at = n * 7919 % (len(self._recording) - CHUNK_SAMPLES * CHUNKS)
        return self._recording[at : at + CHUNK_SAMPLES * CHUNKS]

    def items(self) -> Iterator[list[tuple[str, np.ndarray, bool]]]:
        """Rounds: the next chunk of most of those who live, in changing company; newcomers for those who went."""
        while True:
            while len(self._live) < self.plan.at_a_time and self._next < self.plan.streams:
                self._live[self._next] = 0
                self._next += 1
            if not self._live:
                return
            names = np.array([n for n in self._live if self._rng.random() < 0.9] or list(self._live))
            self._rng.shuffle(names)
            for part in np.array_split(names, -(-len(names) // 500)):
                yield [self._chunk(n) for n in part.tolist()]

    def _chunk(self, n: int) -> tuple[str, np.ndarray, bool]:
        k = self._live[n]
        last = k == CHUNKS - 1
        self._live[n] = k + 1
        if last:
            del self._live[n]
        return f"call-{n}", self.signal(n)[k * CHUNK_SAMPLES : (k + 1) * CHUNK_SAMPLES], last and self.ends(n)

    def take(self, results: list[Result]) -> None:
        for result in results:
            assert not result.notes, f"{result.stream}: {result.notes}"
            if result.stream in self.sampled:
                self.found[result.stream].append(result)

    def check(self, report: Report) -> None:
        """The sampled streams, byte for byte; of those without an end, all that there was before it."""
        bundle = load(str(SHIPPED / "digits.onnx"))
        for name, n in self.sampled.items():
            assert self.found[name] or not self.ends(n), f"{name}: no result was read; were they trimmed before?"
            got, wanted = spoken(self.found[name]), whole(bundle, self.signal(n)[:, None])
            seqs = [result.seq for result in self.found[name]]
            assert seqs == sorted(set(seqs)), f"{name}: a result twice, or out of order"
            if self.ends(n):
                assert got == wanted, f"{name}: {got} is not {wanted}; results: {self.found[name]}"
                assert [result.end for result in self.found[name]][-1:] == [True]
            else:
                assert wanted[0].startswith(got[0].removesuffix("]")), f"{name}: {got} does not begin {wanted}"
            report.exact += 1
            report.events += sum(len(result.events) for result in self.found[name])


def run(server: EmbeddedServer, folder: Path, plan: Plan) -> Report:
    """Needs an empty server. Raises AssertionError where a stream is not what it should be."""
    recording, _ = soundfile.read(RECORDING, dtype="int16")
    churn, report = Churn(plan, recording), Report(plan)
    bundle_path = SHIPPED / "digits.onnx"
    with (
        environment(plan.settings),
        connect(server.url) as client,
        make_producer(server.url, load(str(bundle_path))) as producer,
        Consumer(TOPIC, GROUP, url=server.url, start="beginning") as consumer,
        WorkerProcess(server.url, bundle_path, folder, **plan.settings) as process,
    ):
        process.wait_for("ready")
        watch = Watch(client, psutil.Process(process.process.pid), psutil.Process(server.pid), report)
        report.partitions = producer.partitions
        push(churn, producer, consumer, watch)

        def done() -> bool:
            churn.take(consumer.read(timeout_s=0))  # results do not wait for us: they are trimmed after seconds
            watch.look()
            return not any(backlog(client, TOPIC, producer.partitions).values())

        until(done, "the worker to be done", 120)
        report.seconds = time.monotonic() - watch.began_s
        while results := consumer.read(timeout_s=1.0):
            churn.take(results)
        churn.check(report)
        wait_for_silence(client, watch, report)
        process.process.terminate()
        process.process.wait(20)
        report.counts = process.events()[-1]
    return report


def push(churn: Churn, producer: Producer, consumer: Consumer, watch: Watch) -> None:
    """As fast as the backlog's bound allows; results are read in between, before they are trimmed."""
    for items in churn.items():
        producer.push_many(items)
        watch.report.chunks += len(items)
        churn.take(consumer.read(timeout_s=0))
        watch.look()


class Watch:
    """Memory and keys, once a second."""

    def __init__(self, client: redis.Redis, worker: psutil.Process, server: psutil.Process, report: Report) -> None:
        self.report, self._client, self._worker, self._server = report, client, worker, server
        self.began_s = self._next_s = time.monotonic()

    def look(self) -> None:
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + 1.0
        used = self._client.info("memory")["used_memory"]
        rss, server_rss = self._worker.memory_info().rss, self._server.memory_info().rss
        self.report.samples.append((now - self.began_s, rss, used, server_rss, self._client.dbsize()))


def wait_for_silence(client: redis.Redis, watch: Watch, report: Report) -> None:
    """Until all that was to be kept for a while is gone; what is left then, stays."""
    plan = report.plan
    began_s = time.monotonic()
    longest_s = (max(plan.idle_ms, plan.tombstone_ms) + plan.outage_ms + plan.retention_ms) / 1000 + 10

    def gone() -> bool:
        watch.look()
        look_at(client, report)
        late = time.monotonic() > began_s + longest_s
        return late or (not report.strange and report.entries <= 2 * report.partitions)

    until(gone, "an end", longest_s + 30)
    report.waited_s = time.monotonic() - began_s


def look_at(client: redis.Redis, report: Report) -> None:
    """What is left: keys of the constant kinds, strange ones, entries in logs."""
    report.left, report.strange, report.entries = Counter(), [], 0
    for key in (key.decode() for key in client.scan_iter(count=10_000)):
        kind = next((kind for kind in CONSTANT if re.fullmatch(kind, key)), None)
        if kind is None:
            report.strange.append(key)
            continue
        report.left[kind.replace("\\", "").replace("d+", "p")] += 1
        if key.endswith((":in", ":out", ":dead")):
            report.entries += client.xlen(key)


def show(report: Report) -> None:
    plan, rate = report.plan, report.chunks / report.seconds
    print(
        f"{report.chunks} chunks of {CHUNK_SAMPLES} samples, {plan.streams} streams, {plan.at_a_time} at a time: "
        f"{report.seconds:.1f} s, {rate:.0f} chunks/s, {1e6 / rate:.0f} us a chunk (producer, server, worker, consumer)"
    )
    for name, column in (("worker, resident", 1), ("server, used", 2), ("server, resident", 3)):
        early, late = report.growth(column)
        most = max(sample[column] for sample in report.samples) / 2**20
        print(
            f"{name:17} {early:7.1f} MiB in the second quarter, {late:7.1f} in the last "
            f"({100 * (late / early - 1):+.1f} %), {most:.1f} at most"
        )
    keys = [sample[4] for sample in report.samples]
    print(
        f"keys: {max(keys)} at most; {report.waited_s:.1f} s after the last chunk {sum(report.left.values())} are left"
    )
    for kind, count in sorted(report.left.items()):
        print(f"  {count:3} {kind}")
    print(f"entries left in all logs: {report.entries}; keys left that should not be: {len(report.strange)}")
    print(f"sampled streams, compared with the whole run: {report.exact} of {report.exact} ({report.events} events)")
    print(f"worker: { ({k: v for k, v in report.counts.items() if isinstance(v, int)}) }")


def plot(report: Report, path: Path) -> None:
    """Memory and keys over time; the end of pushing is marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    at, worker, used, rss, keys = (np.array(column, float) for column in zip(*report.samples, strict=True))
    figure, (above, below) = pyplot.subplots(2, sharex=True, figsize=(9, 6), layout="constrained")
    for values, name in ((worker, "worker, resident"), (used, "server, used"), (rss, "server, resident")):
        above.plot(at, values / 2**20, label=name)
    below.plot(at, keys, color="black", label="keys on the server")
    for axis in (above, below):
        axis.axvline(report.seconds, color="grey", linestyle=":", label="last chunk done")
        axis.set_ylim(bottom=0)
        axis.legend()
    above.set(ylabel="MiB", title=f"{report.chunks} chunks, {report.plan.streams} streams that come and go")
    below.set(xlabel="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=50_000)
    parser.add_argument("--at-a-time", type=int, default=1_000)
    parser.add_argument("--fsync", default="everysec", choices=["no", "everysec", "always"])
    parser.add_argument("--plot", type=Path, default=Path("runs/churn.png"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with EmbeddedServer(path / "redis", fsync=given.fsync) as server:
            report = run(server, path, Plan(given.streams, given.at_a_time))
    show(report)
    plot(report, given.plot)
    failed = report.failures()
    print("FAILED: " + "; ".join(failed) if failed else f"passed: memory flat, nothing left behind ({given.plot})")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
