"""The contenders that live on Redis: how each is started, fed and read, and what its results are compared with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from pipeline.broker.entries import Entry
from pipeline.broker.keys import Keys
from pipeline.broker.results import Result as Stored
from pipeline.bundle import Bundle, load
from pipeline.consumer import decode
from pipeline.producer import Producer
from tests.bench import live
from tests.bench.cores import on
from tests.bench.loop import OUT
from tests.harness import spoken, whole

CLOSE = 1e-3
"""How far a contender without the guarantee may be from the whole run, in any score, to be a contender at all."""

STEADY = {"input_retention_ms": 1000}
"""The log of chunks is as long as it gets after a second, not after the minute of the default: a server that holds ever
more takes new memory from the system, which is what is measured then (3 to 14 us a page, one a chunk, where the machine
is a virtual one). From then on, as in a deployment that has run for a minute, it uses what it has again."""


@dataclass
class Subject:
    """One of them.

    Attributes:
        module: the program of a contender that is not us; its results lie in OUT.
        compared: hold what it yields against the whole run (of this checkout).
        bundle: what ours runs; what the others are compared with.
    """

    name: str
    wire: str
    bundle: Path
    module: str | None = None
    core_model: Path | None = None
    partitions: int = 4
    settings: dict[str, object] = field(default_factory=dict)
    compared: bool = True

    @property
    def ours(self) -> bool:
        return self.module is None

    @property
    def out(self) -> list[str]:
        return [Keys("audio", "digits", n).out for n in range(self.partitions)] if self.ours else [OUT]

    def parse(self, fields: dict[bytes, bytes]) -> tuple[bytes, bytes, bool]:
        if self.wire != "faststream":
            return fields[b"stream"], fields[b"seq"], b"end" in fields
        headers = _faststream(fields)[1]
        return headers["stream"].encode(), headers["seq"].encode(), "end" in headers

    def prepare(self, url: str) -> None:
        """The topic, with as many partitions as wanted."""
        if self.ours:
            spec = load(self.bundle).manifest.input
            Producer(
                "audio", url=url, sample_rate_hz=spec.sample_rate_hz, sample_type=spec.sample_type,
                channels=spec.channels, partitions=self.partitions,
            ).close()  # fmt: skip

    @contextmanager
    def running(self, url: str, folder: Path, core: int) -> Iterator[psutil.Process]:
        """Its worker process, ready, on a core of its own."""
        log = folder / f"{self.name}-{time.monotonic_ns()}.log"
        if self.ours:
            with on(core):
                given = {"publish": "chunks", "bundle": self.bundle, **STEADY, **self.settings}
                made = live.worker_process(url, log, **given)
                process = made.__enter__()
            try:
                yield process
            finally:
                made.__exit__(None, None, None)
            return
        with log.open("wb") as out, on(core):
            child = subprocess.Popen(
                [sys.executable, "-m", str(self.module), url, str(self.core_model)], stdout=out, stderr=out,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        try:
            while "ready" not in log.read_text():
                if child.poll() is not None:
                    raise RuntimeError(f"{self.name}: {log.read_text()[-2000:]}")
                time.sleep(0.02)
            yield psutil.Process(child.pid)
        finally:
            child.kill()
            child.wait()

    def distance(self, bundle: Bundle, signal: np.ndarray, entries: Sequence[Entry], ended: bool) -> float:
        """How far a stream's results are from the whole run's: 0.0 where they are the same bytes.

        Ours are compared as bytes, whatever the head publishes; a stream that did not end, as far as it went.
        Raises RuntimeError where ours are other bytes, or theirs far off.
        """
        if self.ours:
            results = [decode(Stored(0, id_, fields)) for id_, fields in entries]
            got, wanted = spoken(results), whole(bundle, signal)
            same = got == wanted if ended else wanted[0].startswith(got[0].removesuffix("]")) and got[1] == wanted[1]
            if not same:
                raise RuntimeError(f"{self.name}: a stream's results are not those of the whole signal: {got[0]}")
            return 0.0
        parts = [fields[b"scores"] if self.wire == "plain" else _faststream(fields)[0] for _, fields in entries]
        scores = np.frombuffer(b"".join(parts), "<f4")
        wanted_scores = bundle.forward(signal).scores.ravel()
        far = float(np.abs(scores - wanted_scores).max()) if scores.shape == wanted_scores.shape else np.inf
        if far > CLOSE:
            raise RuntimeError(f"{self.name}: its scores are {far} from those of the whole signal")
        return far


def _faststream(fields: dict[bytes, bytes]) -> tuple[bytes, dict[str, str]]:
    from faststream.redis.parser import BinaryMessageFormatV1

    return BinaryMessageFormatV1.parse(fields[b"__data__"])
