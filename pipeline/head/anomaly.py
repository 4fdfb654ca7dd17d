"""Anomaly: one score a frame to stretches of what is out of the ordinary, with a threshold that runs with the stream.

The level of a stream is the 8-norm mean of its scores so far, `(mean s^8)^(1/8)`: what the highest of them were, the
older counting the less (`memory_frames`), or of its first `learn_frames` alone, in which nothing is told. A frame is
anomalous if its score reaches the larger of `threshold` and `rise` times the level of the frames before it. An anomaly
begins with such a frame, which is told at once as `<label>_start`, and is over once `hold_frames` in a row are none; it
ends with the last that was. No label, of a person or a file, takes part.

Exact whatever the chunks and the batch: level and decisions go frame by frame, in additions, multiplications, divisions
and square roots of float64, elementwise over streams and each correctly rounded.
"""

from __future__ import annotations

import numpy as np

from pipeline.component import Array, Field, State, fresh
from pipeline.head.events import Events
from pipeline.manifest import AnomalyHead


class Anomaly:
    """`[B, T, C]` float32 scores to events. Labels: 0 is an anomaly, 1 the start of one (where the spec wants starts).

    A start has start == end and the score of its frame; an anomaly's score is the highest in it.

    Args:
        spec: the manifest's head.
        hop_samples: samples from one frame to the next.
    """

    block = 1
    latency = 0
    publishes_scores = False
    publishes_samples = False
    tail_samples = 0

    def __init__(self, spec: AnomalyHead, hop_samples: int = 1) -> None:
        self.spec = spec
        self.labels = (spec.label, f"{spec.label}_start") if spec.starts else (spec.label,)
        self._hop = hop_samples
        self.fields = (
            Field("frames", "int64", ()),  # seen so far
            Field("power", "float64", ()),  # running mean of the scores' 8th power
            Field("open", "int64", ()),  # 1 within an anomaly
            Field("first", "int64", ()),  # its first frame
            Field("last", "int64", ()),  # the last one that was anomalous
            Field("peak", "float32", ()),  # the highest score in it
        )

    def initial_state(self, batch: int) -> State:
        """Nothing seen, nothing open."""
        return fresh(self.fields, batch)

    def step(self, x: Array, state: State) -> tuple[Events, State]:
        """The starts that these frames tell and the anomalies that they complete."""
        score = x[:, :, self.spec.column]
        with np.errstate(invalid="ignore", over="ignore"):
            limits, power = self._limits(score, state)
            high = (score >= limits) & self._told(state["frames"], x.shape[1])
        after = {**state, "frames": state["frames"] + x.shape[1], "power": power}
        rows = np.flatnonzero(np.any(high, axis=1) | (state["open"] > 0))
        if not rows.size:
            return Events.none(), after
        return self._decide(score[rows], high[rows], rows, state, after)

    def flush(self, state: State) -> Events:
        """The anomalies that the end cut off."""
        rows = np.flatnonzero(state["open"] > 0)
        return self._events(rows, 0, state["first"], state["last"] + 1, state["peak"], rows)

    def _limits(self, score: Array, state: State) -> tuple[Array, Array]:
        """(what each frame's score must reach, float64 `[B, T]`; the running mean after them, `[B]`)."""
        spec, power = self.spec, state["power"]
        limits = np.full(score.shape, spec.threshold)
        if not spec.rise:
            return limits, power
        for t in range(score.shape[1]):
            limits[:, t] = np.maximum(spec.threshold, spec.rise * np.sqrt(np.sqrt(np.sqrt(power))))
            count = state["frames"] + (t + 1)
            eighth = np.square(np.square(np.square(score[:, t].astype(np.float64))))
            moved = power + (eighth - power) / np.minimum(count, spec.memory_frames)
            power = np.where(count <= spec.learn_frames, moved, power) if spec.learn_frames else moved
        return limits, power

    def _told(self, frames: Array, count: int) -> Array:
        """Bool `[B, T]`: false where only the level is learnt yet."""
        return np.asarray(frames[:, None] + np.arange(count) >= self.spec.learn_frames)

    def _decide(
        self, score: Array, high: Array, rows: Array, state: State, after: State
    ) -> tuple[Events, State]:  # fmt: skip
        """Frame by frame over the rows where an anomaly is open or begins; quiet stretches are skipped."""
        seen = state["frames"][rows]
        is_open = state["open"][rows] > 0
        first, last, peak = (state[name][rows] for name in ("first", "last", "peak"))
        found: list[Events] = []
        wakes = np.flatnonzero(np.any(high, axis=0))
        t, frames = 0, score.shape[1]
        with np.errstate(invalid="ignore"):
            while t < frames:
                if not is_open.any():
                    later = np.searchsorted(wakes, t)
                    if later == wakes.size:
                        break
                    t = int(wakes[later])
                now, value, anomalous = seen + t, score[:, t], high[:, t]
                over = is_open & ~anomalous & (now - last >= self.spec.hold_frames)
                begins = anomalous & ~is_open
                first = np.where(begins, now, first)
                peak = np.where(begins | (anomalous & (value > peak)), value, peak)
                last = np.where(anomalous, now, last)
                is_open = (is_open | begins) & ~over
                which = np.flatnonzero(over | (begins & self.spec.starts))
                if which.size:
                    end = np.where(over, last + 1, first)
                    label = np.where(over, 0, 1)[which]
                    found.append(self._events(which, label, first, end, peak, rows[which]))
                t += 1
        values = (is_open.astype(np.int64), first, last, peak)
        for name, value in zip(("open", "first", "last", "peak"), values, strict=True):
            after[name] = state[name].copy()
            after[name][rows] = value
        if not found:
            return Events.none(), after
        return Events(*(np.concatenate(column) for column in zip(*found, strict=True))), after

    def _events(
        self, which: Array, label: Array | int, first: Array, end: Array, peak: Array, streams: Array
    ) -> Events:
        score = np.clip(peak[which], 0.0, 1.0).astype(np.float32)
        labels = np.broadcast_to(np.asarray(label, np.int64), which.shape)
        return Events(streams.astype(np.int64), labels, first[which] * self._hop, end[which] * self._hop, score)
