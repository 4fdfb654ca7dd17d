"""All contenders in turns on one server: what `make bench` measures, as plain figures for JSON."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import soxr
from rich.console import Console

from pipeline.broker.embedded import EmbeddedServer
from pipeline.cli.memory import collect_seldom
from tests.bench import alone, contest, curves, summary, vad, yardstick
from tests.bench.contest import Ground, Pace
from tests.bench.cores import CORES, on
from tests.bench.figures import CHUNK_US, over
from tests.bench.machine import describe
from tests.bench.soak import RECORDING
from tests.bench.subject import Subject

NAMES = (
    "ceiling", "torch", "statebelt", "words", "loop", "faststream", "vad", "known", "partitions", "workers", "startup",
)  # fmt: skip
STREAMS = {
    "statebelt": (256, 300),
    "words": (256, 300),
    "vad": (256, 300),
    "loop": (40, 1000),
    "faststream": (40, 1200),
}
"""Streams of the backlog, and us a chunk to begin with."""
BESIDE_S = 0.7
"""How long the ceiling is measured before and after a flood."""
PART = 0.3
"""Of the maximum: the load of each worker in the curves of partitions and workers, so that two and all who feed them
find room on two cores."""


NO_REWRITES = {"auto-aof-rewrite-percentage": "0"}
"""A new server rewrites its log at every doubling from 64 MB on: with a few hundred streams every other second, by a
child that on two cores takes the server's own for half a second. Nobody's speed but the disk's would be measured."""


@dataclass(frozen=True)
class Plan:
    """What to measure, and for how long.

    Attributes:
        turns: of every contender; `curve_turns` of every point of a curve.
        pace: of a contender on Redis.
    """

    names: Sequence[str]
    turns: int
    curve_turns: int
    pace: Pace
    curve_s: float
    alone_s: float
    known: Sequence[int] = curves.KNOWN
    partitions: Sequence[int] = curves.PARTITIONS


class Runner:
    """Measures a plan. `run` is what was found so far."""

    def __init__(self, ground: Ground, plan: Plan, console: Console) -> None:
        self._ground, self._plan, self._console = ground, plan, console
        self.run: dict[str, Any] = {
            "machine": describe(),
            "turns": plan.turns,
            "seconds": plan.pace.seconds,
            "alone": {},
            "matches": {},
            "vad": {},
            "curves": {},
            "skipped": {},
        }
        files = yardstick.write(ground.folder)
        ours = Subject("statebelt", "belt", files.scores)
        self._statebelt = ours
        core = files.core
        self._subjects = {
            "statebelt": ours,
            "words": replace(ours, name="words", bundle=files.words, settings={"publish": "events"}),
            "loop": Subject("loop", "plain", files.scores, "tests.bench.loop", core),
            "faststream": Subject("faststream", "faststream", files.scores, "tests.bench.faststream_app", core),
        }
        self._steps = {
            name: make()
            for name, make in (("ceiling", lambda: alone.onnx_steps(core)), ("torch", alone.torch_steps))
            if name in plan.names
        }
        if "faststream" in plan.names and find_spec("faststream") is None:
            self.run["skipped"]["faststream"] = "the package is not installed (make bench installs it: extra `bench`)"
        self._loops: dict[str, vad.Once] = {}
        self._vad: Subject | None = None
        if "vad" in plan.names:
            self._prepare_vad()

    def _prepare_vad(self) -> None:
        try:
            model, bundle = vad.bundle(self._ground.folder)
        except vad.Skipped as error:
            self.run["skipped"]["vad"] = str(error)
            return
        self._vad = Subject("statebelt-vad", "belt", bundle)
        with on(CORES.worker):
            self._loops, skipped = vad.loops(model, self._ground.recording)
        self.run["skipped"] |= skipped

    def everything(self) -> dict[str, Any]:
        began_s = time.monotonic()
        for turn in range(self._plan.turns):
            self._turn(f"turn {turn + 1} of {self._plan.turns}")
        for turn in range(self._plan.curve_turns):
            self._curves(f"curves, turn {turn + 1} of {self._plan.curve_turns}", backwards=bool(turn % 2))
        if "startup" in self._plan.names:
            times = [curves.start_up(self._ground, self._statebelt) for _ in range(max(3, self._plan.turns))]
            self.run["curves"]["startup"] = times
        self.run["took_s"] = round(time.monotonic() - began_s, 1)
        return self.run

    def _say(self, where: str, name: str) -> None:
        self._console.print(f"{where}: {name}", style="dim", highlight=False)

    def _turn(self, where: str) -> None:
        for name, steps in self._steps.items():
            self._say(where, name)
            found = alone.turn(steps, self._plan.alone_s)
            self.run["alone"].setdefault(name, []).append({str(batch): us for batch, us in found.items()})
        for name, subject in self._subjects.items():
            if name in self._plan.names and name not in self.run["skipped"]:
                self._say(where, name)
                self.run["matches"].setdefault(name, []).append(self._match(name, subject))
        if self._vad is not None:
            self._say(where, "vad")
            found_vad = self.run["vad"]
            for name, once in self._loops.items():
                us = vad.turn(once, self._ground.recording)
                found_vad.setdefault("loops", {}).setdefault(name, []).append(us)
            found_vad.setdefault("ours", []).append(self._match("vad", self._vad))

    def _match(self, name: str, subject: Subject) -> dict[str, Any]:
        pace = self._plan.pace
        if name != "statebelt":
            pace = replace(pace, parts=tuple(part for part in pace.parts if part != "half"), floods=1)
        streams, guess_us = STREAMS[name]
        ceiling_us = self._ceiling_us if name in summary.OURS and "ceiling" in self._steps else None
        return contest.turn(self._ground, subject, pace, guess_us, streams, ceiling_us)

    def _ceiling_us(self) -> float:
        """The ceiling, again, at the batch that has been its best."""
        batch = int(summary.best_batch(self.run["alone"]["ceiling"]))
        return alone.measure(self._steps["ceiling"][batch], batch, BESIDE_S)

    def _curves(self, where: str, *, backwards: bool) -> None:
        """A turn of all points; every other one backwards, for a machine that gets slower would bend every curve."""
        plan, ground, subject, seconds = self._plan, self._ground, self._statebelt, self._plan.curve_s
        some = max(10, round(PART * self._most()))
        points: dict[str, tuple[Sequence[int], Callable[[int], dict[str, Any]]]] = {
            "known": (plan.known, lambda n: curves.known(ground, subject, n, seconds)),
            "partitions": (plan.partitions, lambda n: curves.partitions(ground, subject, n, some, seconds)),
            "workers": ((1, 2), lambda n: curves.workers(ground, subject, n, some, seconds)),
        }
        for name, (of, measure) in points.items():
            if name not in plan.names:
                continue
            curve = self.run["curves"].setdefault(name, {str(point): [] for point in of})
            for point in reversed(of) if backwards else of:
                self._say(where, f"{name} {point:,}")
                curve[str(point)].append(measure(point))

    def _most(self) -> float:
        """Live streams of one worker, at most."""
        turns = self.run["matches"].get("statebelt")
        return over(turns, "max_streams").middle if turns else CHUNK_US / STREAMS["statebelt"][1]


@contextmanager
def ground() -> Iterator[Ground]:
    """A server on its core, a folder, the recording at 16 kHz; this process on the reader's core."""
    samples, rate_hz = soundfile.read(RECORDING, dtype="float32")
    signal = np.tile(soxr.resample(samples, rate_hz, yardstick.RATE_HZ), 3)
    recording = np.clip(signal * 32767, -32768, 32767).astype(np.int16)
    collect_seldom()  # this process reads, beside the server that is measured
    with tempfile.TemporaryDirectory() as name, on(CORES.reader):
        folder = Path(name)
        with on(CORES.server):
            server = EmbeddedServer(folder / "redis", settings=NO_REWRITES).start()
        try:
            assert server.pid is not None
            made = Ground(server.url, psutil.Process(server.pid), folder, recording)
            np.save(made.pcm, recording)
            yield made
        finally:
            server.close()
