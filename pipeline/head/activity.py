"""Activity: scores to stretches of one label, end to end, with a hold time.

A stream is at any moment in one activity. It changes to another when that one has been the likeliest for `hold_frames`
frames in a row: from the first of them on. What is likeliest for less long changes nothing. An event is an activity
that is over: it ends where the next one begins, so events tile the stream from its first frame to its last. Which
activity a stream begins with is known when one has held for the first time; frames before count to it. A stream that
ends before any held was the one that gathered most probability.

An event's score is the mean probability of its label over its frames.

Exact whatever the chunks: probabilities are summed from the stream's beginning, one frame after another, in float64
(`np.cumsum` is sequential, `np.sum` is not), and a stretch's sum is the difference of two such sums. Exact whatever the
batch: sums are elementwise, and every row is decided by itself.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.component import Array, Field, State, fresh
from pipeline.head.events import Events
from pipeline.manifest import ActivityHead

_NONE = -1


class _Found(NamedTuple):
    """An event, behind the frame that completed it: so they sort."""

    completed: int
    row: int
    label: int
    start: int
    stop: int
    mean: float


class Activity:
    """`[B, T, C]` float32 probabilities to events. Labels are indices into `labels`.

    Args:
        spec: the manifest's head.
        labels: the manifest's labels.
        hop_samples: samples from one frame to the next; with 1, events are told in frames.
    """

    block = 1
    latency = 0
    publishes_scores = False
    publishes_samples = False
    tail_samples = 0

    def __init__(self, spec: ActivityHead, labels: tuple[str, ...], hop_samples: int = 1) -> None:
        self.spec = spec
        self.labels = labels
        self._hop = hop_samples
        classes = len(labels)
        self.fields = (
            Field("frames", "int64", ()),  # seen so far
            Field("label", "int64", (), _NONE),  # the activity that goes on; -1: none has held yet
            Field("start", "int64", ()),  # its first frame
            Field("rival", "int64", (), _NONE),  # the likeliest label of the last frame
            Field("since", "int64", ()),  # the first frame of its run
            Field("sums", "float64", (classes,)),  # of every label's probability, from the stream's beginning
            Field("at_start", "float64", (classes,)),  # these sums when the activity began
            Field("at_since", "float64", (classes,)),  # and when the run began
        )

    def initial_state(self, batch: int) -> State:
        """Nothing seen."""
        return fresh(self.fields, batch)

    def step(self, x: Array, state: State) -> tuple[Events, State]:
        """The activities that these frames end."""
        frames = x.shape[1]
        after = {name: array.copy() for name, array in state.items()}
        if not frames:
            return Events.none(), after
        with np.errstate(invalid="ignore", over="ignore"):
            sums = np.cumsum(np.concatenate([state["sums"][:, None], x], axis=1, dtype=np.float64), axis=1)
            top = x.argmax(axis=2)
        after["frames"] += frames
        after["sums"] = sums[:, -1].copy()
        quiet = (top == state["rival"][:, None]).all(axis=1) & (state["rival"] == state["label"])
        found: list[_Found] = []
        for row in np.flatnonzero(~quiet).tolist():
            self._decide(row, top[row], sums[row], int(state["frames"][row]), after, found)
        return _events(found, self._hop), after

    def flush(self, state: State) -> Events:
        """The activity that the end cut off."""
        found: list[_Found] = []
        for row in np.flatnonzero(state["frames"] > 0).tolist():
            label = int(state["label"][row])
            gathered = state["sums"][row] - state["at_start"][row]
            label = int(gathered.argmax()) if label == _NONE else label
            start, stop = int(state["start"][row]), int(state["frames"][row])
            found.append(_Found(0, row, label, start, stop, float(gathered[label]) / (stop - start)))
        return _events(found, self._hop)

    def _decide(self, row: int, top: Array, sums: Array, seen: int, after: State, found: list[_Found]) -> None:
        """Run by run of equal labels: `top` `[T]` is the likeliest of each frame, `sums` `[T + 1, C]` what was gathered
        before it."""
        changes = np.flatnonzero(np.diff(top, prepend=after["rival"][row])).tolist()
        for begin, end in pairwise([*([] if changes[:1] == [0] else [0]), *changes, len(top)]):
            if top[begin] != after["rival"][row]:
                after["rival"][row], after["since"][row], after["at_since"][row] = top[begin], seen + begin, sums[begin]
            label, rival, since = (int(after[name][row]) for name in ("label", "rival", "since"))
            if rival == label or seen + end - since < self.spec.hold_frames:
                continue
            after["label"][row] = rival
            if label == _NONE:
                continue  # the first one: it began with the stream
            start = int(after["start"][row])
            mean = float(after["at_since"][row, label] - after["at_start"][row, label]) / (since - start)
            found.append(_Found(since + self.spec.hold_frames - seen, row, label, start, since, mean))
            after["start"][row], after["at_start"][row] = since, after["at_since"][row]


def _events(found: list[_Found], hop: int) -> Events:
    if not found:
        return Events.none()
    _, rows, labels, starts, stops, means = zip(*sorted(found), strict=True)
    row, label, start, stop = (np.array(column, np.int64) for column in (rows, labels, starts, stops))
    return Events(row, label, start * hop, stop * hop, np.clip(np.array(means, np.float32), 0.0, 1.0))
