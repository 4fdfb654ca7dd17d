"""Keywords: frame probabilities to words, with hysteresis.

The probabilities are smoothed by a causal moving average; their sum over the words is the probability that any word
is being said. A word begins when that sum reaches `low` and is over when it has stayed below `release` for
`hold_frames`, or at once when another word holds the majority and the first one is below `release`. Then it is
published if the sum's peak, its score, reached `threshold`. Its label is the one that gathered most probability from
its first frame to its last (so "nine" may still become "five"): how sure it is that something was said, and what, are
two questions. Start and end are moved back by what smoothing and the model's own habit delay them (`lead_frames`,
`trail_frames`).

A stream of at most `final_frames` in which nothing was published is taken for a single utterance: at its end its best
word is published, if it reached `final_threshold`, with its own low score. Longer streams have no such word.

Exact whatever the chunks: each average is a sum of W shifted slices in one fixed order, never a running
sum. Exact whatever the batch: every operation is elementwise over streams.
"""

from __future__ import annotations

import numpy as np

from pipeline.component import Array, Field, State, fresh
from pipeline.head.events import Events
from pipeline.manifest import KeywordsHead

_MAJORITY = 0.5
_FAINT = ("faint", "faint_begin", "faint_last", "faint_peak")


class Keywords:
    """`[B, T, C]` float32 probabilities to events. Labels are indices into `labels`.

    Args:
        spec: the manifest's head.
        labels: the manifest's labels; `spec.background` is one of them.
        hop_samples: samples from one frame to the next; with 1, events are told in frames.
    """

    block = 1
    latency = 0
    publishes_scores = False
    publishes_samples = False
    tail_samples = 0

    def __init__(self, spec: KeywordsHead, labels: tuple[str, ...], hop_samples: int = 1) -> None:
        self.spec = spec
        self.labels = labels
        self._hop = hop_samples
        self._words = np.array([n for n, label in enumerate(labels) if label != spec.background], np.int64)
        self._share = np.float32(1.0 / spec.smooth_frames)
        self.fields = (
            Field("past", "float32", (spec.smooth_frames - 1, len(self._words))),
            Field("frames", "int64", ()),  # seen so far
            Field("open", "int64", ()),  # 1 while a word is being said
            Field("sums", "float32", (len(self._words),)),  # what each word gathered since it began
            Field("begin", "int64", ()),  # the frame that opened it
            Field("last", "int64", ()),  # the last frame at which it stood above release
            Field("peak", "float32", ()),
            Field("free", "int64", ()),  # the first frame at which a word may begin; 0 until one was published
            Field("faint", "int64", (), -1.0),  # the best word that stayed below the threshold, a column; -1: none
            Field("faint_begin", "int64", ()),
            Field("faint_last", "int64", ()),
            Field("faint_peak", "float32", ()),
        )

    def initial_state(self, batch: int) -> State:
        """Nothing heard, nothing open."""
        return fresh(self.fields, batch)

    def step(self, x: Array, state: State) -> tuple[Events, State]:
        """The words that these frames complete."""
        smooth, past = self._smoothed(x, state["past"])
        frames = x.shape[1]
        after = {**state, "past": past, "frames": state["frames"] + frames}
        if not self._words.size:
            return Events.none(), after
        with np.errstate(invalid="ignore"):
            total = smooth[:, :, 0].copy()
            for word in range(1, self._words.size):  # in one fixed order, whatever the memory's layout
                total += smooth[:, :, word]
            ready = total >= self.spec.low
        rows = np.flatnonzero(np.any(ready, axis=1) | (state["open"] > 0))
        if not rows.size:
            return Events.none(), after
        return self._decide(smooth[rows], total[rows], np.any(ready[rows], axis=0), rows, state, after)

    def flush(self, state: State) -> Events:
        """The words that the end cut off, and those it leaves no more time for."""
        alone = (state["free"] == 0) & (state["frames"] <= self.spec.final_frames)
        is_open = (state["open"] > 0) & ((state["peak"] >= self.spec.threshold) | alone)
        faint = ~is_open & (state["faint"] >= 0) & alone

        rows = np.flatnonzero(is_open | faint)
        now = (state["sums"].argmax(axis=1), state["begin"], state["last"], state["peak"])
        before = (state[name] for name in _FAINT)
        word, begin, last, peak = (np.where(is_open, new, old) for new, old in zip(now, before, strict=True))
        return self._events(rows, word, begin, last, peak, rows)

    def _smoothed(self, x: Array, past: Array) -> tuple[Array, Array]:
        """(moving averages `[B, T, words]`, the last W - 1 frames)."""
        joined = np.concatenate([past, x[:, :, self._words]], axis=1)
        frames, window = x.shape[1], self.spec.smooth_frames
        total = joined[:, :frames].copy()
        with np.errstate(invalid="ignore"):
            for shift in range(1, window):
                total += joined[:, shift : shift + frames]
            total *= self._share
        return total, joined[:, frames:].copy()

    def _decide(
        self, smooth: Array, total: Array, ready: Array, rows: Array, state: State, after: State
    ) -> tuple[Events, State]:
        """Frame by frame over the rows where something is open or may begin; quiet stretches are skipped."""
        spec, count = self.spec, np.arange(rows.size)
        seen = state["frames"][rows]
        is_open, sums = state["open"][rows] > 0, state["sums"][rows]
        begin, last, peak, free = (state[k][rows] for k in ("begin", "last", "peak", "free"))
        faint = tuple(state[k][rows] for k in _FAINT)
        found: list[Events] = []
        wakes = np.flatnonzero(ready)
        t, frames = 0, smooth.shape[1]
        with np.errstate(invalid="ignore"):
            while t < frames:
                if not is_open.any():
                    later = np.searchsorted(wakes, t)
                    if later == wakes.size:
                        break
                    t = int(wakes[later])
                now, value, any_word = seen + t, smooth[:, t], total[:, t]
                opens = ~is_open & (any_word >= spec.low) & (now >= free)
                begin = np.where(opens, now, begin)
                sums = np.where(opens[:, None], value, np.where(is_open[:, None], sums + value, sums))
                peak = np.where(opens | (is_open & (any_word > peak)), any_word, peak)
                word, top = sums.argmax(axis=1), value.argmax(axis=1)
                replaced = (top != word) & (value[count, top] >= _MAJORITY) & (value[count, word] < spec.release)
                replaced &= is_open
                stands = opens | (is_open & ~replaced & (any_word >= spec.release))
                last = np.where(stands, now, last)
                over = is_open & ~stands & (replaced | (now - last >= spec.hold_frames))
                is_open = (is_open | opens) & ~over
                if over.any():
                    loud = over & (peak >= spec.threshold)
                    which = np.flatnonzero(loud)
                    if which.size:
                        found.append(self._events(which, word, begin, last, peak, rows[which]))
                    kept = over & ~loud & ((faint[0] < 0) | (peak >= faint[3]))
                    whole = (word, begin, last, peak)
                    faint = tuple(np.where(kept, new, old) for new, old in zip(whole, faint, strict=True))
                    free = np.where(loud, now + 1 + spec.refractory_frames, free)
                t += 1
        names = ("open", "sums", "begin", "last", "peak", "free", *_FAINT)
        values = (is_open.astype(np.int64), sums, begin, last, peak, free, *faint)
        for name, value in zip(names, values, strict=True):
            after[name] = state[name].copy()
            after[name][rows] = value
        if not found:
            return Events.none(), after
        return Events(*(np.concatenate(column) for column in zip(*found, strict=True))), after

    def _events(self, which: Array, word: Array, begin: Array, last: Array, peak: Array, streams: Array) -> Events:
        start = np.maximum(begin[which] - self.spec.lead_frames, 0)
        end = np.maximum(last[which] + 1 - self.spec.trail_frames, start + 1)
        score = np.clip(peak[which], 0.0, 1.0).astype(np.float32)
        return Events(streams.astype(np.int64), self._words[word[which]], start * self._hop, end * self._hop, score)
