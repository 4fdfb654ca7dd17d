"""Segments: one score a frame to stretches of it, as in voice activity detection.

A segment begins with a frame whose score reaches `threshold`. Silence begins with a frame below `negative_threshold`
and is over with one that reaches `threshold`; between the two nothing changes. The segment is complete at the first
frame below `negative_threshold` at which the silence is `min_silence_samples` old: it ends where the silence began.
Both sides are padded. A segment shorter than `min_speech_samples`, before padding, is none; its start is told as
soon as it is known not to be.

These are the decisions of the iterator that comes with Silero VAD. Scores are float32 and thresholds real numbers: what
is compared with is the first float32 that is no less. Scores that are logits are compared with the thresholds' logits,
so no sigmoid is computed but for the few scores that are published.

Exact whatever the chunks and the batch: every frame is decided alone, by comparisons, and every row by itself.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.component import Array, Field, State, fresh
from pipeline.head.events import Events
from pipeline.manifest import SegmentsHead

_NONE = -1


class Segments:
    """`[B, T, C]` float32 scores to events. Labels: 0 is a segment, 1 the start of one (where the spec wants starts).

    A start has start == end; its score is that of the frame that began the segment, or the highest until it was told
    where `min_speech_samples` delay that. A segment's score is the highest in it.

    Args:
        spec: the manifest's head.
        hop_samples: samples from one frame to the next.
    """

    block = 1
    latency = 0
    publishes_scores = False
    publishes_samples = False
    tail_samples = 0

    def __init__(self, spec: SegmentsHead, hop_samples: int) -> None:
        self.spec = spec
        self.labels = (spec.label, f"{spec.label}_start") if spec.starts else (spec.label,)
        self._hop = hop_samples
        limits = (spec.threshold, spec.negative_threshold)
        self._speech, self._silence = (_no_less(_logit(p) if spec.logit else p) for p in limits)
        self.fields = (
            Field("frames", "int64", ()),  # seen so far
            Field("open", "int64", ()),  # 1 within a segment
            Field("told", "int64", ()),  # 1 once its start was told
            Field("first", "int64", ()),  # its first frame
            Field("silent", "int64", (), _NONE),  # the frame at which silence began; -1: it has not
            Field("peak", "float32", ()),  # the highest score in it
        )

    def initial_state(self, batch: int) -> State:
        """Nothing heard, nothing open."""
        return fresh(self.fields, batch)

    def step(self, x: Array, state: State) -> tuple[Events, State]:
        """The starts that these frames tell and the segments that they complete."""
        score = x[:, :, self.spec.column]
        with np.errstate(invalid="ignore"):
            speech, silence = score >= self._speech, score < self._silence
        after = {**state, "frames": state["frames"] + x.shape[1]}
        rows = np.flatnonzero(np.any(speech, axis=1) | (state["open"] > 0))
        if not rows.size:
            return Events.none(), after
        return self._decide(score[rows], speech[rows], silence[rows], rows, state, after)

    def flush(self, state: State) -> Events:
        """The segments that the end cut off: they last to the end, or to where silence had begun."""
        quiet = state["silent"] != _NONE
        stop = np.where(quiet, state["silent"], state["frames"])
        rows = np.flatnonzero((state["open"] > 0) & self._counts(state["first"], stop))
        end = stop * self._hop + np.where(quiet, self.spec.pad_samples, 0)
        return self._events(rows, np.zeros(rows.size, np.int64), self._start(state["first"]), end, state["peak"], rows)

    def _decide(
        self, score: Array, speech: Array, silence: Array, rows: Array, state: State, after: State
    ) -> tuple[Events, State]:
        """Frame by frame over the rows where a segment is open or may begin; quiet stretches are skipped."""
        seen = state["frames"][rows]
        is_open, told = state["open"][rows] > 0, state["told"][rows] > 0
        first, silent, peak = (state[name][rows] for name in ("first", "silent", "peak"))
        found: list[Events] = []
        wakes = np.flatnonzero(np.any(speech, axis=0))
        t, frames = 0, score.shape[1]
        with np.errstate(invalid="ignore"):
            while t < frames:
                if not is_open.any():
                    later = np.searchsorted(wakes, t)
                    if later == wakes.size:
                        break
                    t = int(wakes[later])
                now, value = seen + t, score[:, t]
                begins = ~is_open & speech[:, t]
                first = np.where(begins, now, first)
                peak = np.where(begins | (is_open & (value > peak)), value, peak)
                is_open = is_open | begins
                quiet = is_open & silence[:, t]
                silent = np.where(speech[:, t], _NONE, np.where(quiet & (silent == _NONE), now, silent))
                over = quiet & ((now - silent) * self._hop >= self.spec.min_silence_samples)
                counts = self._counts(first, np.where(silent == _NONE, now + 1, silent))
                tells = is_open & ~told & counts
                told = (told | tells) & ~over
                which = np.flatnonzero((over & counts) | (tells & self.spec.starts))
                if which.size:
                    start, end = self._start(first), silent * self._hop + self.spec.pad_samples
                    end = np.where(over, end, start)
                    found.append(self._events(which, np.where(over, 0, 1)[which], start, end, peak, rows[which]))
                is_open = is_open & ~over
                silent = np.where(over, _NONE, silent)
                t += 1
        values = (is_open.astype(np.int64), told.astype(np.int64), first, silent, peak)
        for name, value in zip(("open", "told", "first", "silent", "peak"), values, strict=True):
            after[name] = state[name].copy()
            after[name][rows] = value
        if not found:
            return Events.none(), after
        return Events(*(np.concatenate(column) for column in zip(*found, strict=True))), after

    def _counts(self, first: Array, stop: Array) -> Array:
        """Is a segment of the frames `first` to `stop` long enough to be one?"""
        return np.asarray((stop - first) * self._hop >= self.spec.min_speech_samples)

    def _start(self, first: Array) -> Array:
        return np.asarray(np.maximum(first * self._hop - self.spec.pad_samples, 0))

    def _events(self, which: Array, label: Array, start: Array, end: Array, peak: Array, streams: Array) -> Events:
        peaks = [_sigmoid(logit) for logit in peak[which].tolist()] if self.spec.logit else peak[which]
        score = np.clip(np.asarray(peaks, np.float32), 0.0, 1.0)
        return Events(streams.astype(np.int64), label.astype(np.int64), start[which], end[which], score)


def _no_less(threshold: float) -> np.float32:
    """The first float32 that is no less: comparing with it decides as comparing with the real number would.

    >>> float(_no_less(0.35)) >= 0.35
    True
    """
    near = np.float32(threshold)
    return near if float(near) >= threshold else np.nextafter(near, np.float32(np.inf))


def _logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)


def _sigmoid(logit: float) -> float:
    """One number at a time: vector libraries may round by where a value lies."""
    small = math.exp(-abs(logit))
    return (1.0 if logit >= 0 else small) / (1.0 + small)
