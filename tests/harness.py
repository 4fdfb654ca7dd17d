"""Real workers for tests: as threads where only the result counts, as processes where they are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from pipeline import audio
from pipeline.bundle import Bundle
from pipeline.consumer import Consumer, Result
from pipeline.head import Forecast
from pipeline.offline import run
from pipeline.producer import Producer
from pipeline.settings import load_settings
from pipeline.worker import Worker
from tests import zoo

DATA = Path(os.environ.get("STATEBELT_DATA", Path(__file__).parents[2] / "shared" / "data"))
DEADLINE_S = 30.0


def until(true: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a fact about another process, which no event can tell us."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not true():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        pause.wait(0.005)


@contextmanager
def worker(url: str, bundle: Bundle, **settings: object) -> Iterator[Worker]:
    """A worker in a thread; what it raised is raised here."""
    made = Worker(load_settings(url=url, **settings), bundle=bundle)
    raised: list[BaseException] = []

    def body() -> None:
        try:
            made.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


class WorkerProcess:
    """`statebelt worker` as users run it, to be killed."""

    def __init__(self, url: str, bundle: Path, folder: Path, *flags: str, **settings: object) -> None:
        given = {f"STATEBELT_{k.upper()}": str(v) for k, v in {"url": url, "bundle": bundle, **settings}.items()}
        status = {"STATEBELT_STATUS_DIR": str(folder / "status")}
        self.log = folder / f"worker-{time.monotonic_ns()}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "worker", *flags],
                env={**status, **os.environ, **given, "STATEBELT_LOG_FORMAT": "json"},
                stdout=out,
                stderr=out,
            )

    def events(self) -> list[dict[str, object]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for(self, event: str) -> WorkerProcess:
        def seen() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return any(line.get("event") == event for line in self.events())

        until(seen, f"{event!r} in the log of the worker")
        return self

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        self.kill()


Cut = Callable[[np.random.Generator, Bundle], int]


def every(ms: float) -> Cut:
    """Chunks of so many milliseconds."""
    return lambda _, bundle: max(1, round(bundle.manifest.input.sample_rate_hz * ms / 1000))


def random_cut(rng: np.random.Generator, bundle: Bundle) -> int:
    """Chunks of any size: mostly short ones, some empty, some of seconds."""
    return int(rng.integers(0, 20 * bundle.frontend.block * bundle.model.block)) if rng.random() > 0.05 else 20_000


def cut_up(
    bundle: Bundle, signals: Mapping[str, np.ndarray], cut: Cut, seed: int = 0
) -> Iterator[list[tuple[str, np.ndarray, bool]]]:
    """Rounds of chunks: one of each stream that still has samples, in changing company."""
    rng = np.random.default_rng(seed)
    position = dict.fromkeys(signals, 0)
    while position:
        names = [name for name in position if rng.random() < 0.8] or list(position)
        rng.shuffle(names)
        batch = []
        for name in names:
            start = position[name]
            stop = min(len(signals[name]), start + cut(rng, bundle))
            end = stop == len(signals[name])
            batch.append((name, signals[name][start:stop], end))
            position[name] = stop
            if end:
                del position[name]
        yield batch


def make_producer(url: str, bundle: Bundle, topic: str = "audio", **options: object) -> Producer:
    spec = bundle.manifest.input
    return Producer(
        topic,
        url=url,
        sample_rate_hz=spec.sample_rate_hz,
        sample_type=spec.sample_type,
        channels=spec.channels,
        **options,  # type: ignore[arg-type]
    )


def collect(consumer: Consumer, streams: Sequence[str]) -> dict[str, list[Result]]:
    """Results up to the end of every one of `streams`."""
    open_streams, found = set(streams), defaultdict[str, list[Result]](list)
    deadline = time.monotonic() + DEADLINE_S
    while open_streams:
        assert time.monotonic() < deadline, f"no end of {sorted(open_streams)[:5]} ({len(open_streams)} streams)"
        for result in consumer.read(timeout_s=1):
            found[result.stream].append(result)
            if result.end:
                open_streams.discard(result.stream)
    return dict(found)


def spoken(results: Sequence[Result]) -> tuple[str, bytes, bytes]:
    """What a stream yielded, as text and bytes to be compared: events, scores, audio."""
    events = [asdict(event) for result in results for event in result.events]
    scores = b"".join(result.scores.tobytes() for result in results if result.scores is not None)
    samples = b"".join(result.samples.tobytes() for result in results if result.samples is not None)
    return json.dumps(events), scores, samples


def whole(bundle: Bundle, samples: np.ndarray) -> tuple[str, bytes, bytes]:
    """What the whole signal yields, in the same form."""
    found = run(bundle, samples)
    kept = bundle.head.published(found.scores, 0) if isinstance(bundle.head, Forecast) else found.scores
    scores = kept.tobytes() if bundle.head.publishes_scores else b""
    made = b"" if found.samples is None else found.samples.tobytes()
    return json.dumps([asdict(event) for event in found.events]), scores, made


def assert_exact(bundle: Bundle, signals: Mapping[str, np.ndarray], found: Mapping[str, list[Result]]) -> None:
    """Every stream, byte for byte; every result once and in order."""
    for name, samples in signals.items():
        assert spoken(found[name]) == whole(bundle, samples), f"stream {name}"
        seqs = [result.seq for result in found[name]]
        assert seqs == sorted(set(seqs)), f"stream {name}: results twice or out of order"
        assert [result.end for result in found[name]] == [False] * (len(seqs) - 1) + [True]


def digits(count: int, *, seed: int = 0, words: int = 3) -> dict[str, np.ndarray]:
    """Real speech: `count` streams of some spoken digits each. Skips where the corpus is absent."""
    folder = DATA / "fsdd"
    if not folder.is_dir():
        pytest.skip(f"no corpus at {folder} (set STATEBELT_DATA)")
    rng = np.random.default_rng(seed)
    files = sorted(folder.rglob("*.flac"))
    spec = zoo.bundle("digits").manifest.input
    gap = np.zeros((1600, 1), np.int16)
    return {
        f"call-{i}": np.concatenate(
            [part for f in rng.choice(np.array(files, object), words) for part in (audio.read(f, spec), gap)]
        )
        for i in range(count)
    }


def lively(bundle: Bundle, count: int, blocks: int = 60) -> dict[str, np.ndarray]:
    """`count` random signals of unequal length."""
    block = bundle.frontend.block * bundle.model.block
    return {
        f"s-{i}": zoo.signal(bundle.manifest.input, block * (blocks // 2 + (i * 7) % blocks) + i % 3, seed=i)
        for i in range(count)
    }
