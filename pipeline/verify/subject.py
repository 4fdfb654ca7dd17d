"""A bundle under trial: the signals it hears, and the ways of running it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.batcher import Batcher
from pipeline.bundle import Bundle
from pipeline.component import Array
from pipeline.errors import ConfigError
from pipeline.manifest import InputSpec
from pipeline.output import Event, Output
from pipeline.samples import to_sample_type

FRAMES = 300
"""Frames of a stream, unless asked for otherwise: a few seconds of work for a model of a million weights."""

_MOST_SAMPLES = 10**8  # of a stream
_FEWEST_BLOCKS = 24  # that a stream has in any case
_CROWD_BLOCKS = 40  # of each stream, at most, where there are many
_ALONE = 3  # streams that are cut in every way


class Failure(Exception):
    """A check that cannot be carried through, and why."""


class Said(NamedTuple):
    """What a stream yielded: scores `[T, C]`, events in order, audio `[N]` (none: no samples)."""

    scores: Array
    events: list[Event]
    samples: Array


class Subject:
    """A bundle and the signals that it is tried with.

    Args:
        recording: `[N, channels]` from which all signals are cut; None: they are random.
        seconds: length of a stream; None: some hundred frames.
        streams: how many there are in `crowd`.

    Attributes:
        signals: a few, for what each does alone. crowd: many, shorter, for what they do together. All are a whole
            number of blocks long.
        block: samples of one.
    """

    def __init__(self, bundle: Bundle, recording: Array | None, seconds: float | None, streams: int, seed: int) -> None:
        if streams < 2:
            raise ConfigError(f"{streams} streams; give at least 2: company is one of the things to verify")
        self.bundle = bundle
        self._seed = seed
        self._recording = None if recording is None else _checked(recording, bundle)
        self.block = bundle.frontend.block * bundle.model.block
        wanted = FRAMES * bundle.frontend.block
        if self._recording is not None:
            wanted = min(len(self._recording), wanted)
        if seconds is not None:
            rate_hz = bundle.manifest.input.sample_rate_hz
            if not 0 <= seconds * rate_hz <= _MOST_SAMPLES:
                raise ConfigError(
                    f"streams of {seconds:g} s: expected 0 to {_MOST_SAMPLES / rate_hz:g} s, which are "
                    f"{_MOST_SAMPLES:,} samples: some are held in memory at once"
                )
            wanted = round(seconds * rate_hz)
        length = max(_FEWEST_BLOCKS, wanted // self.block) * self.block
        self.signals = [self._signal(i, length) for i in range(_ALONE)]
        self.crowd = [self._signal(i, min(length, _CROWD_BLOCKS * self.block)) for i in range(streams)]

    def rng(self, *key: int) -> np.random.Generator:
        """Numbers of their own for every use, so that one check's do not depend on another's."""
        return np.random.default_rng((self._seed, *key))

    def _signal(self, i: int, length: int) -> Array:
        """Stream `i`, `[length, channels]`. Of a recording: its beginning, then pieces from anywhere, some faint."""
        if self._recording is None:
            spec = self.bundle.manifest.input
            return to_sample_type(lively(spec, length, self.bundle.frontend.block, self.rng(1, i)), spec.sample_type)
        rng = self.rng(2, i)
        start = int(rng.integers(len(self._recording))) if i else 0
        piece = self._recording[(start + np.arange(length)) % len(self._recording)]
        return piece if i == 0 else (piece * rng.choice([1.0, 0.5, 0.1, 0.01])).astype(piece.dtype)

    def stranger(self, x: Array) -> Array:
        """Another signal, of the shape and loudness of `x` but no part of a recording."""
        rng = self.rng(3)
        other = lively(self.bundle.manifest.input, len(x), self.bundle.frontend.block, rng)
        other += 0.03 * rng.standard_normal(x.shape).astype(np.float32)  # never silent
        loudest = float(np.abs(x.astype(np.float64)).max(initial=0)) or 1.0
        return (other * (loudest / float(np.abs(other).max()))).astype(x.dtype)

    def given(self, i: int) -> Array | None:
        """What stream `i` was given (a speaker's embedding, say): random float32 `[n]` of length 1; None: the model
        takes nothing."""
        if not self.bundle.model.given:
            return None
        value = self.rng(8, i).standard_normal(self.bundle.manifest.model.given_bytes // 4)
        return np.asarray(value / np.sqrt(np.sum(value**2)), np.float32)

    def forward(self, i: int, x: Array) -> Said:
        """The oracle: the parts composed by hand over the whole signal `x` of stream `i`, no batcher, no rows."""
        found = self.bundle.forward(x, self.given(i))
        if not np.isfinite(found.scores).all():
            raise Failure(f"stream {i}: a score is NaN or infinite. A worker would start the stream afresh there")
        rate_hz, last = self.bundle.manifest.input.sample_rate_hz, len(x)
        events = [
            Event(
                label=self.bundle.head.labels[label],
                start_s=min(start, last) / rate_hz,
                end_s=min(end, last) / rate_hz,
                score=round(score, 6),
            )
            for _, label, start, end, score in zip(*(column.tolist() for column in found.events), strict=True)
        ]
        return Said(found.scores, events, np.empty(0, np.float32) if found.samples is None else found.samples)

    def alone(
        self, i: int, x: Array, edges: Sequence[int], *, max_blocks: int | None = 64, stored: bool = False
    ) -> Said:
        """Stream `i` by itself, cut at `edges` (0 and its length among them), perhaps stored and read back at each."""
        rows = Rows(self, [i], max_blocks)
        for n, (start, stop) in enumerate(pairwise(edges), 2):
            if stored:
                rows.restore([0])
            rows.feed([0], [x[start:stop]], [n == len(edges)])
        return rows.said(0)

    def random_edges(self, length: int, *key: int) -> list[int]:
        """Cuts of every kind: nothing, single samples, parts of a block, many blocks."""
        rng, edges = self.rng(4, *key), [0]
        while edges[-1] < length:
            most = (0, 1, self.block, 4 * self.block, 20 * self.block)[int(rng.integers(5))]
            edges.append(min(length, edges[-1] + (int(rng.integers(1, most + 1)) if most else 0)))
        return edges

    def block_edges(self, length: int, *key: int) -> list[int]:
        """Cuts between blocks, so that no chunk leaves samples over; most are short, as in live traffic."""
        sizes = self.rng(5, *key).choice([1, 1, 1, 2, 2, 3, 5, 16], length // self.block) * self.block
        inner = np.cumsum(sizes)
        return [0, *inner[inner < length].tolist(), length]


class Rows:
    """Rows of one batcher, fed as a worker feeds them; `streams` says who stands on each."""

    def __init__(self, subject: Subject, streams: Sequence[int], max_blocks: int | None = 64) -> None:
        self.batcher = Batcher(subject.bundle, max_blocks=max_blocks, keep_scores=True)
        self.rows = np.repeat(np.array([self.batcher.layout.blank]), len(streams))
        self._bundle = subject.bundle
        self._outputs: list[list[Output]] = [[] for _ in streams]
        for n, i in enumerate(streams):
            self._give(n, subject.given(i))

    def hand_on(self, subject: Subject, row: Array, i: int) -> None:
        """Stream `i` gets `row` `[1]`, which may have been another's."""
        self.rows = row
        self._give(0, subject.given(i))

    def _give(self, row: int, values: Array | None) -> None:
        if values is not None:
            self.batcher.give(self.rows[row], values)

    def feed(self, which: Sequence[int], chunks: Sequence[Array], ends: Sequence[bool]) -> None:
        """Advance the rows `which` by a chunk each. Raises Failure: the model yielded NaN or infinity."""
        picked = self.rows[list(which)]
        before = picked["samples"].copy()
        for n, output in enumerate(self.batcher.run(picked, chunks, np.array(ends, bool))):
            if output.broken:
                at_s = int(before[n]) / self._bundle.manifest.input.sample_rate_hz
                raise Failure(f"row {which[n]}: a score or the state is NaN or infinite, soon after {at_s:.2f} s")
            self._outputs[which[n]].append(output)
        self.rows[list(which)] = picked

    def restore(self, which: Sequence[int]) -> None:
        """Store rows as Redis keeps them, and read them back."""
        layout = self.batcher.layout
        for i, stored in zip(which, layout.dump(self.rows[list(which)]), strict=True):
            self.rows[i] = np.frombuffer(layout.parse(stored), layout.dtype)[0]

    def said(self, i: int) -> Said:
        """All that row `i` yielded."""
        outputs = self._outputs[i]
        scores = [np.empty((0, self._bundle.manifest.model.classes), np.float32)]
        samples = [np.empty(0, np.float32)]
        for output in outputs:
            scores += output.scores
            samples += output.samples
        events = [event for output in outputs for event in output.events]
        return Said(np.concatenate(scores), events, np.concatenate(samples))


def lively(spec: InputSpec, samples: int, frame_samples: int, rng: np.random.Generator) -> Array:
    """A random signal `[samples, channels]`, float32 in -1..1, that makes most models say something.

    Stretches of some frames each, of any loudness: noise, a buzz with all its overtones (a voice has them), silence.
    """
    stretch = max(48, 7 * frame_samples)
    count = -(-samples // stretch) + 1
    loud, kind = rng.random(count) ** 2, rng.integers(0, 5, count)
    periods = np.exp(rng.uniform(np.log(6), np.log(max(12, spec.sample_rate_hz / 80)), count))
    # They begin anywhere within the first, so that streams do not change at the same time.
    at = (np.arange(samples) + rng.integers(stretch)) // stretch
    noise = rng.standard_normal((samples, spec.channels)).astype(np.float32) / 3
    saw = np.cumsum(1 / periods[at])[:, None] + rng.random(spec.channels)
    buzz = ((saw % 1) ** 4 * 2 - 0.4).astype(np.float32)
    x = np.where((kind[at] < 2)[:, None], buzz + noise / 10, noise) * (loud * (kind < 4))[at][:, None]
    return np.asarray(np.clip(x, -1, 1), np.float32)


def _checked(recording: Array, bundle: Bundle) -> Array:
    spec = bundle.manifest.input
    samples = recording[:, None] if recording.ndim == 1 else recording
    if samples.dtype != spec.sample_type or samples.ndim != 2 or samples.shape[1] != spec.channels:
        raise ConfigError(
            f"samples are {recording.dtype} of shape {list(recording.shape)}; {bundle.source} takes "
            f"{spec.sample_type} [N, {spec.channels}]"
        )
    if not len(samples) or not np.isfinite(samples).all():
        raise ConfigError("the recording is empty, or holds NaN or infinity; give another")
    return samples
