"""The checks: each runs the same streams in two ways that differ in one thing, and yields what both said.

So a failing check names its cause: if company changes the scores and cuts do not, `batch` fails and `chunking` does
not. Only `traffic` has everything at once, as a worker does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.belt import Belt
from pipeline.verify.subject import Failure, Rows, Said, Subject


class Case(NamedTuple):
    """One comparison of stream `stream`, and what was done in it."""

    what: str
    stream: int
    expected: Said
    got: Said


Findings = Iterator[Case | str]
"""Comparisons, and remarks."""


def _repeat(subject: Subject) -> Findings:
    events = 0
    for i, x in enumerate(subject.signals):
        once = subject.forward(i, x)
        events += len(once.events)
        yield Case("twice", i, once, subject.forward(i, x))
    head = subject.bundle.head
    if not events and not head.publishes_scores and not head.publishes_samples:
        yield "no event came about, so the head was hardly tried: give a recording in which some occur"


def _chunking(subject: Subject) -> Findings:
    block = subject.block
    for i, whole in enumerate(subject.signals):
        x = whole[: len(whole) - block // 3]  # ends within a block
        length, expected = len(x), subject.forward(i, x)
        ways: dict[str, tuple[Sequence[int], int | None]] = {
            "one chunk": ((0, length), None),
            "one chunk, 7 blocks a step": ((0, length), 7),
            "chunks of one block": ((*range(0, length, block), length), 64),
            "single samples, then the rest": ((*range(min(2 * block + 2, 400)), length), 64),
            "random cuts": (subject.random_edges(length, i, 0), 64),
            "other random cuts": (subject.random_edges(length, i, 1), 3),
        }
        for way, (edges, max_blocks) in ways.items():
            yield Case(way, i, expected, subject.alone(i, x, edges, max_blocks=max_blocks))


def _batch(subject: Subject) -> Findings:
    """The cuts are the same in both runs."""
    count, length = len(subject.crowd), len(subject.crowd[0])
    edges = subject.block_edges(length)
    alone = [subject.alone(i, x, edges) for i, x in enumerate(subject.crowd)]
    for again in range(3):
        rng, rows = subject.rng(6, again), Rows(subject, range(count))
        for start, stop in pairwise(edges):
            order = rng.permutation(count).tolist()
            while order:
                size = int(rng.integers(2, len(order) + 1)) if len(order) > 3 else len(order)
                size += len(order) - size == 1  # nobody is left alone
                group, order = order[:size], order[size:]
                rows.feed(group, [subject.crowd[i][start:stop] for i in group], [stop == length] * size)
        for i in range(count):
            yield Case(f"company {again + 1}", i, alone[i], rows.said(i))


def _rows(subject: Subject) -> Findings:
    for i, x in enumerate(subject.signals):
        edges = subject.random_edges(len(x), i, 2)
        yield Case("stored at every cut", i, subject.alone(i, x, edges), subject.alone(i, x, edges, stored=True))


def _fresh(subject: Subject) -> Findings:
    """On a belt of one row, as a worker's: one stream leaves it, another gets it."""
    x = subject.signals[0]
    tenant = subject.stranger(x)  # never silent, so that it leaves something behind
    edges = subject.block_edges(len(x), 1)
    rows = Rows(subject, [0])
    belt = Belt(rows.batcher.layout, 1)
    belt.place("tenant", 0, None)
    slots = belt.slots(["tenant"])
    picked = belt.gather(slots)
    rows.batcher.run(picked, [tenant], np.array([False]))
    belt.scatter(slots, picked)
    belt.begin(["next"])
    belt.place("next", 0, None)
    rows.hand_on(subject, belt.gather(belt.slots(["next"])), 0)
    for start, stop in pairwise(edges):
        rows.feed([0], [x[start:stop]], [stop == len(x)])
    yield Case("after another stream", 0, subject.alone(0, x, edges), rows.said(0))


def _empty(subject: Subject) -> Findings:
    for i, x in enumerate(subject.signals):
        edges = subject.block_edges(len(x), 2, i)
        twice = sorted([*edges, *edges])  # the last of the empty chunks is the stream's end
        yield Case("an empty chunk at every cut", i, subject.alone(i, x, edges), subject.alone(i, x, twice))


def _end(subject: Subject) -> Findings:
    """A stream's last frames: as many as were owed, and none unheard."""
    spec, block, x = subject.bundle.manifest.model, subject.block, subject.signals[0]
    for length in sorted({max(0, blocks * block + more) for blocks in (0, 1, 2, 7) for more in (-1, 0, 1)}):
        expected = subject.forward(0, x[:length])
        owed = -(-(length + subject.bundle.head.tail_samples) // block) * spec.block + spec.tail_frames
        if len(expected.scores) != owed:
            raise Failure(
                f"{length} samples yield {len(expected.scores)} frames of scores, expected {owed}: a model yields one "
                "vector of scores for every frame"
            )
        yield Case(f"{length} samples", 0, expected, subject.alone(0, x[:length], (0, length)))
    if unheard := min(_unheard(subject, i) for i in range(len(subject.signals))):
        frames = unheard * spec.block
        yield (
            f"the last {frames} frames of a signal change no score: the model answers later than its latency of "
            f"{spec.latency} frames says. Is it {spec.latency + frames}?"
        )


def _unheard(subject: Subject, i: int) -> int:
    """How many blocks at the end of stream `i` can be replaced without changing any score; 0 if it is deaf to any."""
    x = subject.signals[i]
    whole, stranger = subject.forward(i, x).scores.tobytes(), subject.stranger(x)
    for blocks in range(1, min(33, len(x) // subject.block)):
        start = len(x) - blocks * subject.block
        other = np.concatenate([x[:start], stranger[start:]])
        if subject.forward(i, other).scores.tobytes() != whole:
            return blocks - 1
    return 0


def _causality(subject: Subject) -> Findings:
    """Both are whole signals of one length; what differs is their future."""
    for i, x in enumerate(subject.signals):
        whole, stranger = subject.forward(i, x), subject.stranger(x)
        blocks = len(x) // subject.block
        for known in (1, blocks // 3, blocks - 1):
            other = np.concatenate([x[: known * subject.block], stranger[known * subject.block :]])
            said = max(0, known * subject.bundle.model.block - subject.bundle.model.latency)
            past = [Said(run.scores[:said], [], run.samples[:0]) for run in (whole, subject.forward(i, other))]
            yield Case(f"another future from block {known} on", i, *past)


def _traffic(subject: Subject) -> Findings:
    """Streams of unequal length and chunks, in changing company, stored at every chunk."""
    rng = subject.rng(7)
    signals = [x[: int(rng.integers(len(x) // 2, len(x) + 1))] for x in subject.crowd]
    rows, position, alive = Rows(subject, range(len(signals))), [0] * len(signals), list(range(len(signals)))
    while alive:
        group = rng.permutation(alive)[: int(rng.integers(1, len(alive) + 1))].tolist()
        stops = [min(len(signals[i]), position[i] + int(rng.integers(15 * subject.block))) for i in group]
        rows.restore(group)
        chunks = [signals[i][position[i] : stop] for i, stop in zip(group, stops, strict=True)]
        ends = [stop == len(signals[i]) for i, stop in zip(group, stops, strict=True)]
        rows.feed(group, chunks, ends)
        for i, stop in zip(group, stops, strict=True):
            position[i] = stop
        alive = [i for i in alive if position[i] < len(signals[i])]
    for i, x in enumerate(signals):
        yield Case("any cuts, any company", i, subject.forward(i, x), rows.said(i))


CHECKS: dict[str, tuple[str, Callable[[Subject], Findings]]] = {
    "repeat": ("the same call once more", _repeat),
    "chunking": ("cut anyhow, against the whole at once", _chunking),
    "batch": ("in changing company, against alone", _batch),
    "rows": ("stored and read back at every cut", _rows),
    "fresh": ("on a row that another stream had", _fresh),
    "empty": ("with empty chunks in between", _empty),
    "end": ("odd lengths; what latency and tail owe", _end),
    "causality": ("the past, when the future is another", _causality),
    "traffic": ("all at once, against the whole at once", _traffic),
}
"""Every check in order: its name, what it asks, how."""
