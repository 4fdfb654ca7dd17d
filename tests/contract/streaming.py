"""How the contract drives its subjects: single components, and whole pipelines on rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context

import numpy as np

from pipeline.batcher import Batcher
from pipeline.bundle import Bundle
from pipeline.component import Array, Component
from pipeline.head.events import Events
from pipeline.output import Event, Output

Outcome = tuple[bytes, ...]
"""One stream's output as bytes: equal outcomes are equal to the last bit."""


def outcomes(outputs: Sequence[Array | Events], batch: int) -> list[Outcome]:
    """The outputs of successive calls, joined in time and split by stream."""
    if isinstance(outputs[0], Events):
        joined = Events(*(np.concatenate(columns) for columns in zip(*outputs, strict=True)))
        return [
            tuple(column[joined.stream == b].tobytes() for column in joined[1:]) for b in range(batch)
        ]  # fmt: skip
    parts = [part for part in outputs if part.shape[1]]
    return [(np.concatenate([part[b] for part in parts]).tobytes() if parts else b"",) for b in range(batch)]


def stream(component: Component, x: Array, cuts: Sequence[int], *, flush: bool = True) -> list[Outcome]:
    """Run `x` `[B, N, ...]` through a component, cut at whole blocks."""
    state = component.initial_state(len(x))
    edges = [0, *cuts, x.shape[1]]
    outputs = []
    for start, stop in pairwise(edges):
        before = {name: array.copy() for name, array in state.items()}
        y, after = component.step(x[:, start:stop], state)
        for name, array in before.items():
            assert array.tobytes() == state[name].tobytes(), f"step changed the state {name!r} that it was given"
        outputs.append(y)
        state = after
    if flush:
        outputs.append(component.flush(state))
    return outcomes(outputs, len(x))


class Rows:
    """Streams on rows of a bundle's batcher, fed like a worker feeds them."""

    def __init__(self, bundle: Bundle, streams: int, **options: int | None) -> None:
        self.batcher = Batcher(bundle, keep_scores=True, **options)
        self.rows = np.repeat(np.array([self.batcher.layout.blank]), streams)
        self.events: list[list[Event]] = [[] for _ in range(streams)]
        self.scores: list[list[Array]] = [[] for _ in range(streams)]
        self.samples: list[list[Array]] = [[] for _ in range(streams)]

    def feed(self, which: Sequence[int], chunks: Sequence[Array], ends: Sequence[bool]) -> None:
        picked = self.rows[list(which)]
        for i, output in zip(which, self.batcher.run(picked, chunks, np.array(ends, bool)), strict=True):
            self.add(i, output)
        self.rows[list(which)] = picked

    def add(self, i: int, output: Output) -> None:
        """What a chunk of stream `i` brought about."""
        self.events[i] += output.events
        self.scores[i] += output.scores
        self.samples[i] += output.samples

    def outcome(self, i: int) -> Outcome:
        scores, samples = (np.concatenate(x[i]).tobytes() if x[i] else b"" for x in (self.scores, self.samples))
        return (repr(self.events[i]).encode(), scores, samples)


def forward_outcome(bundle: Bundle, samples: Array) -> Outcome:
    """The oracle in the same form: components composed by hand over the whole signal, no batcher, no rows."""
    events, scores, audio = bundle.forward(samples)
    rate = bundle.manifest.input.sample_rate_hz
    listed = [
        Event(
            label=bundle.head.labels[label],
            start_s=min(start, len(samples)) / rate,
            end_s=min(end, len(samples)) / rate,
            score=round(score, 6),
        )
        for _, label, start, end, score in zip(*(column.tolist() for column in events), strict=True)
    ]
    return (repr(listed).encode(), scores.tobytes(), b"" if audio is None else audio.tobytes())


def elsewhere(name: str, stored: bytes, chunk: Array, end: bool) -> tuple[bytes, Output]:
    """Advance one stored row by one chunk, knowing nothing but its bytes; run in another process."""
    from tests import zoo

    batcher = Batcher(zoo.bundle(name), keep_scores=True)
    row = np.frombuffer(batcher.layout.parse(stored), batcher.layout.dtype).copy()
    (output,) = batcher.run(row, [chunk], np.array([end]))
    return row.tobytes(), output


def other_process() -> Iterator[ProcessPoolExecutor]:
    """A process that shares nothing with this one but the code."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool
