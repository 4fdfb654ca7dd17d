"""The activity head against a plain reading of its rule, one frame after another."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.head import Activity
from pipeline.manifest import ActivityHead

LABELS = ("walk", "sit", "stand")
Event = tuple[str, int, int, float]


def head(hold: int, hop: int = 1) -> Activity:
    return Activity(ActivityHead(hold_frames=hold), LABELS, hop)


def heard(x: np.ndarray, hold: int, cuts: list[int] | None = None, hop: int = 1) -> list[Event]:
    """What one stream `[T, C]` yields, in order."""
    made, events = head(hold, hop), []
    state = made.initial_state(1)
    for part in np.split(x, cuts or []):
        found, state = made.step(part[None], state)
        events.append(found)
    events.append(made.flush(state))
    return [
        (LABELS[label], start, end, score)
        for found in events
        for _, label, start, end, score in zip(*(column.tolist() for column in found), strict=True)
    ]


def oracle(x: np.ndarray, hold: int) -> list[Event]:
    """Every frame gets a label: that of the last run of `hold` likeliest frames that had begun by then; frames before
    the first such run get its label. Events are the stretches of equal labels; scores their means."""
    top = x.argmax(axis=1)
    held: list[tuple[int, int]] = []  # (first frame, label) of every run that is long enough
    run = 0
    for t in range(1, len(top) + 1):
        if t == len(top) or top[t] != top[run]:
            if t - run >= hold:
                held.append((run, int(top[run])))
            run = t
    if not len(x):
        return []
    if not held:
        held = [(0, int(x.astype(np.float64).sum(axis=0).argmax()))]
    labels = np.full(len(x), held[0][1])
    for first, label in held:
        labels[first:] = label
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(x)]
    return [(LABELS[labels[a]], a, b, float(x[a:b, labels[a]].mean(dtype=np.float64))) for a, b in pairwise(edges)]


def lively(frames: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((-(-frames // 4), 3)).repeat(4, axis=0)[:frames] * 3 + rng.standard_normal((frames, 3))
    odds = np.exp(logits)
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(frames=st.integers(0, 80), hold=st.integers(1, 9), seed=st.integers(0, 1000), data=st.data())
def test_the_rule(frames: int, hold: int, seed: int, data: st.DataObject) -> None:
    x = lively(frames, seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, frames), max_size=5)))
    found, expected = heard(x, hold, cuts), oracle(x, hold)
    assert [event[:3] for event in found] == [event[:3] for event in expected]
    np.testing.assert_allclose([e[3] for e in found], [e[3] for e in expected], atol=1e-6)


@given(frames=st.integers(1, 60), hold=st.integers(1, 9), seed=st.integers(0, 50))
def test_events_tile_the_stream(frames: int, hold: int, seed: int) -> None:
    found = heard(lively(frames, seed), hold, hop=8)
    assert found[0][1] == 0
    assert found[-1][2] == frames * 8
    assert [a[2] for a in found[:-1]] == [b[1] for b in found[1:]]
    assert all(a[0] != b[0] for a, b in pairwise(found))


def test_what_holds_too_briefly_changes_nothing_and_a_change_is_dated_back() -> None:
    one_hot = np.eye(3, dtype=np.float32)[[0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]]
    assert heard(one_hot, hold=3) == [("walk", 0, 8, 0.75), ("sit", 8, 12, 1.0)]
    made = head(3)
    events, _ = made.step(one_hot[None, :10], made.initial_state(1))
    assert len(events.label) == 0
    events, _ = made.step(one_hot[None, :11], made.initial_state(1))
    assert (events.start.tolist(), events.end.tolist()) == ([0], [8])  # told once the next has held


def test_a_stream_too_short_to_hold_is_what_it_mostly_was() -> None:
    x = np.array([[0.4, 0.6, 0], [0.9, 0.1, 0]], np.float32)
    assert heard(x, hold=5) == [("walk", 0, 2, pytest.approx(0.65))]
    assert heard(x[:0], hold=5) == []


def test_events_of_a_batch_are_in_order_of_time() -> None:
    """By the frame that completed them, then by stream."""
    eye = np.eye(3, dtype=np.float32)
    x = np.stack([eye[[0, 0, 0, 1, 1]], eye[[0, 1, 1, 2, 2]], eye[[0, 0, 0, 1, 1]]])
    made = head(2)
    events, _ = made.step(x, made.initial_state(3))
    assert events.stream.tolist() == [0, 1, 2]
    late, _ = made.step(x[:2, ::-1], made.initial_state(2))
    assert [late.stream.tolist(), late.end.tolist()] == [[0, 1], [2, 2]]
