"""The keywords head against a slow oracle that takes one stream and one frame at a time."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.head import Events, Keywords
from pipeline.manifest import KeywordsHead

LABELS = ("yes", "silence", "no", "maybe")


def oracle(x, spec, labels):
    """Events of one stream `[T, C]` as tuples, in plain Python: what the docstring of the head promises."""
    names = [n for n, label in enumerate(labels) if label != spec.background]
    found, current, free, faint = [], None, 0, None
    low = spec.threshold if spec.final_threshold is None else spec.final_threshold

    def alone(t):
        return free == 0 and t <= spec.final_frames

    for t in range(len(x) + 1):
        if t == len(x):
            if current and (current["peak"] >= np.float32(spec.threshold) or alone(t)):
                found.append(current)
            elif faint and alone(t):
                found.append(faint)
            break
        window = [np.zeros(len(labels), np.float32)] * max(0, spec.smooth_frames - t - 1)
        window += [x[k] for k in range(max(0, t - spec.smooth_frames + 1), t + 1)]
        average = {}
        for n in names:
            total = np.float32(0)
            for k, row in enumerate(window):
                total = row[n] if k == 0 else np.float32(total + row[n])
            average[n] = np.float32(total * np.float32(1.0 / spec.smooth_frames))
        top = max(names, key=lambda n: average[n])
        any_word = average[names[0]]
        for n in names[1:]:
            any_word = np.float32(any_word + average[n])
        if current is None:
            if any_word >= np.float32(low) and t >= free:
                current = {"label": top, "begin": t, "last": t, "peak": any_word, "sums": dict(average)}
            continue
        current["sums"] = {n: np.float32(current["sums"][n] + average[n]) for n in names}
        current["label"] = own = max(names, key=lambda n: current["sums"][n])
        current["peak"] = max(current["peak"], any_word)
        replaced = top != own and average[top] >= np.float32(0.5) and average[own] < np.float32(spec.release)
        if any_word >= np.float32(spec.release) and not replaced:
            current["last"] = t
        else:
            if replaced or t - current["last"] >= spec.hold_frames:
                if current["peak"] >= np.float32(spec.threshold):
                    found.append(current)
                    free = t + 1 + spec.refractory_frames
                elif not faint or current["peak"] >= faint["peak"]:
                    faint = current
                current = None
    result = []
    for event in found:
        start = max(0, event["begin"] - spec.lead_frames)
        end = max(start + 1, event["last"] + 1 - spec.trail_frames)
        result.append((event["label"], start, end, min(1.0, float(event["peak"]))))
    return result


def rows(events: Events, stream: int):
    chosen = events.stream == stream
    columns = (events.label, events.start, events.end, events.score)
    return [tuple(column.tolist() for column in row) for row in zip(*(c[chosen] for c in columns), strict=True)]


def random_probabilities(seed: int, batch: int, frames: int):
    """Words that come, stay and go, at random: softmax over a slow random walk."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(0, 1.2, (batch, frames, len(LABELS))), axis=1)
    walk -= walk.mean(axis=2, keepdims=True)
    walk *= rng.choice([0.2, 1.0, 3.0], (batch, 1, 1))
    e = np.exp(walk - walk.max(axis=2, keepdims=True))
    return (e / e.sum(axis=2, keepdims=True)).astype(np.float32)


specs = st.builds(
    lambda smooth, threshold, share, hold, pause, lead, trail, low, near: KeywordsHead(
        background="silence",
        smooth_frames=smooth,
        threshold=threshold,
        release=threshold * share * (low or 1.0),
        final_threshold=low and threshold * low,
        final_frames=near,
        hold_frames=hold,
        refractory_frames=pause,
        lead_frames=lead,
        trail_frames=trail,
    ),
    st.integers(1, 12),
    st.sampled_from([0.25, 0.5, 0.75]),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.integers(1, 6),
    st.integers(0, 7),
    st.integers(0, 5),
    st.integers(0, 5),
    st.sampled_from([None, 1.0, 0.5, 0.25]),
    st.sampled_from([0, 30, 60, 90]),
)


@given(
    spec=specs, seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 60), max_size=6), hop=st.sampled_from([1, 77])
)
@settings(max_examples=120, deadline=None)
def test_any_chunks_in_any_batch_give_the_oracles_events(spec, seed, cuts, hop):
    x = random_probabilities(seed, batch=3, frames=60)
    head = Keywords(spec, LABELS, hop)
    state, parts = head.initial_state(3), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        before = {name: array.copy() for name, array in state.items()}
        events, after = head.step(x[:, start:end], state)
        for name, array in before.items():
            np.testing.assert_array_equal(state[name], array, err_msg=f"step changed its input state {name!r}")
        parts.append(events)
        state = after
    parts.append(head.flush(state))
    for stream in range(3):
        got = [row for part in parts for row in rows(part, stream)]
        wanted = oracle(x[stream], spec, LABELS)
        assert got == [(label, start * hop, end * hop, score) for label, start, end, score in wanted]


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_neighbour_of_nan_changes_nothing(seed):
    spec = KeywordsHead(background="silence", smooth_frames=4, threshold=0.5, release=0.3, hold_frames=2)
    x = random_probabilities(seed, batch=2, frames=50)
    x[0] = np.nan
    head = Keywords(spec, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        events, state = head.step(x, head.initial_state(2))
    alone, own = head.step(x[1:], head.initial_state(1))
    assert rows(events, 1) == rows(alone, 0)
    assert not rows(events, 0)
    assert all(state[name][1:].tobytes() == own[name].tobytes() for name in state)


def test_events_come_in_the_order_of_their_completion():
    x = random_probabilities(3, batch=8, frames=200)
    spec = KeywordsHead(background="silence", smooth_frames=1, threshold=0.5, release=0.5, hold_frames=1)
    head = Keywords(spec, LABELS)
    whole, _ = head.step(x, head.initial_state(8))
    state, parts = head.initial_state(8), []
    for t in range(200):
        events, state = head.step(x[:, t : t + 1], state)
        assert list(events.stream) == sorted(events.stream)
        parts.append(events)
    for column, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(column, np.concatenate(pieces))


def spoken(*stretches: tuple[str, int]):
    """`[1, T, C]`: each label sure for so many frames."""
    columns = [LABELS.index(label) for label, frames in stretches for _ in range(frames)]
    return np.eye(len(LABELS), dtype=np.float32)[columns][None]


@pytest.mark.parametrize("smooth", [1, 4])
def test_a_word_that_the_end_cuts_off_is_flushed(smooth):
    spec = KeywordsHead(background="silence", smooth_frames=smooth, threshold=0.5)
    head = Keywords(spec, LABELS)
    events, state = head.step(spoken(("silence", 5), ("no", 10)), head.initial_state(1))
    assert not len(events.label)
    last = head.flush(state)
    assert [LABELS[n] for n in last.label] == ["no"]
    assert last.score[0] == 1.0
    assert (last.start[0], last.end[0]) == (5 + (smooth + 1) // 2 - 1, 15)


def test_a_word_right_after_a_word_is_a_word_of_its_own():
    head = Keywords(KeywordsHead(background="silence", smooth_frames=4, threshold=0.5), LABELS)
    events, _ = head.step(spoken(("yes", 20), ("no", 20), ("silence", 30)), head.initial_state(1))
    assert [LABELS[n] for n in events.label] == ["yes", "no"]


def test_a_better_label_takes_an_open_word_over():
    """Nine that turns out to be five is five, once."""
    x = spoken(("silence", 4), ("maybe", 12), ("silence", 20))
    x[0, 4:16] = 0
    x[0, 4:8, LABELS.index("yes")] = 0.6
    x[0, 8:16, LABELS.index("yes")] = 0.3
    x[0, 8:16, LABELS.index("maybe")] = 0.7
    head = Keywords(KeywordsHead(background="silence", smooth_frames=3, threshold=0.5, hold_frames=3), LABELS)
    events, _ = head.step(x, head.initial_state(1))
    assert [LABELS[n] for n in events.label] == ["maybe"]
    np.testing.assert_allclose(events.score, [1.0], rtol=1e-6)


def test_background_is_never_a_word():
    head = Keywords(KeywordsHead(background="silence", smooth_frames=2, threshold=0.5), LABELS)
    events, state = head.step(spoken(("silence", 50)), head.initial_state(1))
    assert not len(events.label)
    assert not len(head.flush(state).label)


@pytest.mark.parametrize(("after", "heard"), [(10, ["no"]), (40, [])])
def test_a_faint_word_is_published_at_the_end_of_a_short_stream_alone(after, heard):
    spec = KeywordsHead(
        background="silence", smooth_frames=2, threshold=0.8, final_threshold=0.3, release=0.2, final_frames=30
    )
    x = spoken(("silence", 5), ("no", 10), ("silence", after)) * np.float32(0.5)
    head = Keywords(spec, LABELS)
    events, state = head.step(x, head.initial_state(1))
    assert not len(events.label)
    last = head.flush(state)
    assert [LABELS[n] for n in last.label] == heard
    assert all(last.score == np.float32(0.5))


def test_a_faint_word_after_a_clear_one_is_none():
    spec = KeywordsHead(
        background="silence", smooth_frames=2, threshold=0.8, final_threshold=0.3, release=0.2, final_frames=60
    )
    x = spoken(("yes", 10), ("silence", 10), ("no", 10), ("silence", 10))
    x[0, 20:] *= np.float32(0.5)
    head = Keywords(spec, LABELS)
    events, state = head.step(x, head.initial_state(1))
    assert [LABELS[n] for n in events.label] == ["yes"]
    assert not len(head.flush(state).label)
