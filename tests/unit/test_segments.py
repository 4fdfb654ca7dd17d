"""The segments head against a slow oracle that takes one stream and one frame at a time."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.head import Events, Segments
from pipeline.manifest import SegmentsHead

HOP = 77
FRAMES = 60


def oracle(scores, spec, hop):
    """Events of one stream `[T]` as tuples, in plain Python: what the docstrings of head and manifest promise."""
    found, segment = [], None

    def probability(score):
        return 1 / (1 + math.exp(-float(score))) if spec.logit else float(score)

    def event(name, start, end, peak):
        return name, max(0, start * hop - spec.pad_samples), end, float(np.float32(peak))

    for t, score in enumerate(scores):
        p = probability(score)
        if segment is None:
            if p < spec.threshold:
                continue
            segment = {"first": t, "quiet": None, "peak": p, "told": False}
        segment["peak"] = max(p, segment["peak"])
        if p >= spec.threshold:
            segment["quiet"] = None
        elif p < spec.negative_threshold:
            if segment["quiet"] is None:
                segment["quiet"] = t
            if (t - segment["quiet"]) * hop >= spec.min_silence_samples:
                if (segment["quiet"] - segment["first"]) * hop >= spec.min_speech_samples:
                    end = segment["quiet"] * hop + spec.pad_samples
                    found.append(event(spec.label, segment["first"], end, segment["peak"]))
                segment = None
                continue
        lasted = (t + 1 - segment["first"]) * hop >= spec.min_speech_samples
        if segment["quiet"] is None and lasted and not segment["told"]:
            segment["told"] = True
            start = max(0, segment["first"] * hop - spec.pad_samples)
            found += [event(f"{spec.label}_start", segment["first"], start, segment["peak"])] * spec.starts
    if segment is not None:
        stop, pad = len(scores), 0
        if segment["quiet"] is not None:
            stop, pad = segment["quiet"], spec.pad_samples
        if (stop - segment["first"]) * hop >= spec.min_speech_samples:
            found.append(event(spec.label, segment["first"], stop * hop + pad, segment["peak"]))
    return found


def rows(head: Segments, events: Events, stream: int):
    chosen = events.stream == stream
    return [
        (head.labels[label], start, end, score)
        for label, start, end, score in zip(*(column[chosen].tolist() for column in events[1:]), strict=True)
    ]


def random_scores(seed: int, batch: int, spec: SegmentsHead):
    """`[B, T, 2]`: probabilities (or logits) that come and go, some exactly at the thresholds; column 0 is noise."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(0, 1.0, (batch, FRAMES, 2)), axis=1)
    walk -= walk.mean(axis=1, keepdims=True)
    if spec.logit:
        return walk.astype(np.float32)
    x = (1 / (1 + np.exp(-walk))).astype(np.float32)
    near = np.float32([spec.threshold, spec.negative_threshold])
    near = np.concatenate([near, np.nextafter(near, np.float32(1)), np.nextafter(near, np.float32(0))])
    exact = rng.random(x.shape) < 0.3
    x[exact] = rng.choice(near, exact.sum())
    return x


specs = st.builds(
    lambda threshold, share, logit, starts, speech, silence, pad: SegmentsHead(
        label="voice",
        column=1,
        threshold=threshold,
        negative_threshold=threshold * share,
        logit=logit,
        starts=starts,
        min_speech_samples=speech,
        min_silence_samples=silence,
        pad_samples=pad,
    ),
    st.sampled_from([0.3, 0.5, 0.8]),
    st.sampled_from([0.5, 0.7, 1.0]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1, HOP, HOP + 1, 3 * HOP, 400]),
    st.sampled_from([0, 1, HOP, HOP + 1, 3 * HOP, 400]),
    st.sampled_from([0, 30, 480]),
)


def close(got, wanted) -> None:
    """Equal, but for the last bit of a score that was a logit."""
    assert [row[:3] for row in got] == [row[:3] for row in wanted]
    np.testing.assert_allclose([row[3] for row in got], [row[3] for row in wanted], rtol=1e-6)


@given(spec=specs, seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, FRAMES), max_size=6).map(sorted))
@settings(max_examples=200, deadline=None)
def test_any_chunks_in_any_batch_give_the_oracles_events(spec, seed, cuts):
    x = random_scores(seed, 3, spec)
    head = Segments(spec, HOP)
    state, parts = head.initial_state(3), []
    for start, end in pairwise([0, *cuts, FRAMES]):
        events, state = head.step(x[:, start:end], state)
        parts.append(events)
    parts.append(head.flush(state))
    for stream in range(3):
        got = [row for part in parts for row in rows(head, part, stream)]
        close(got, oracle(x[stream, :, 1], spec, HOP))


def test_the_oracle_is_lively():
    spec = SegmentsHead(label="voice", column=1, min_speech_samples=150, min_silence_samples=150, pad_samples=30)
    found = [event[0] for seed in range(20) for event in oracle(random_scores(seed, 1, spec)[0, :, 1], spec, HOP)]
    assert found.count("voice_start") == found.count("voice") > 30


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_neighbour_of_nan_changes_nothing(seed):
    spec = SegmentsHead(column=1, min_silence_samples=100)
    x = random_scores(seed, 2, spec)
    x[0] = np.nan
    head = Segments(spec, HOP)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        events, state = head.step(x, head.initial_state(2))
    alone, own = head.step(x[1:], head.initial_state(1))
    assert rows(head, events, 1) == rows(head, alone, 0)
    assert not rows(head, events, 0)
    assert all(state[name][1:].tobytes() == own[name].tobytes() for name in state)


def test_events_come_in_the_order_of_their_completion():
    spec = SegmentsHead(column=1)
    x = random_scores(3, 8, spec)
    head = Segments(spec, HOP)
    whole, _ = head.step(x, head.initial_state(8))
    state, parts = head.initial_state(8), []
    for t in range(FRAMES):
        events, state = head.step(x[:, t : t + 1], state)
        assert list(events.stream) == sorted(events.stream)
        parts.append(events)
    for column, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(column, np.concatenate(pieces))


def said(*scores: float, **changes: object):
    """The events of one stream of these scores, in chunks of one frame at a hop of 100: during it, and at its end."""
    head = Segments(SegmentsHead(**{"pad_samples": 30, **changes}), 100)
    state, during = head.initial_state(1), []
    for score in scores:
        events, state = head.step(np.array([[[score]]], np.float32), state)
        during += rows(head, events, 0)
    return during, rows(head, head.flush(state), 0)


def test_a_segment_ends_where_its_silence_began():
    during, last = said(0.1, 0.1, 0.75, 0.5, 0.1, 0.1, 0.1, 0.1, min_silence_samples=200)
    assert during == [("speech_start", 170, 170, 0.75), ("speech", 170, 430, 0.75)]
    assert last == []


def test_silence_is_over_with_speech_and_not_between():
    """A frame between the thresholds neither ends a silence nor completes a segment."""
    during, _ = said(0.75, 0.1, 0.4, 0.4, 0.4, 0.5, 0.4, 0.1, 0.4, 0.4, 0.1, min_silence_samples=200, starts=False)
    assert during == [("speech", 0, 730, 0.75)]


@pytest.mark.parametrize(("after", "end"), [((), 300), ((0.4,), 400), ((0.1,), 330), ((0.1, 0.4), 330)])
def test_a_segment_that_the_end_cuts_off(after, end):
    """It lasts to the end, or to where silence had begun, that was not yet long enough."""
    _, last = said(0.1, 0.75, 0.75, *after, min_silence_samples=500)
    assert last == [("speech", 70, end, 0.75)]


def test_a_short_segment_is_none_and_its_start_was_never_told():
    short = (0.9, 0.9, 0.1)
    during, last = said(*short, 0.9, 0.75, 0.5, 0.1, *short, min_speech_samples=300)
    assert during == [("speech_start", 270, 270, np.float32(0.9)), ("speech", 270, 630, np.float32(0.9))]
    assert last == []
    assert said(*short[:2], min_speech_samples=201) == ([], [])
    assert said(*short[:2], min_speech_samples=200)[1] == [("speech", 0, 200, np.float32(0.9))]


def test_thresholds_are_real_numbers():
    """0.35 as float32 lies below 0.35, and 0.7 as float32 too: the one is silence, the other is no speech."""
    assert float(np.float32(0.35)) < 0.35
    assert float(np.float32(0.7)) < 0.7
    during, _ = said(0.9, 0.35, starts=False)
    assert [event[:3] for event in during] == [("speech", 0, 130)]
    assert said(0.7, threshold=0.7) == ([], [])


def test_logits_of_any_size():
    logits = [0.001, -0.001, -2.0, 1e4, -1e4, -0.7]
    during, last = said(*logits, logit=True, threshold=0.5, negative_threshold=0.35, starts=False)
    assert [event[1:3] for event in during] == [(0, 230), (270, 430)]
    np.testing.assert_allclose([event[3] for event in during], [1 / (1 + math.exp(-0.001)), 1.0], rtol=1e-6)
    assert last == []
    (only,) = said(-50.0, logit=True, threshold=1e-30, negative_threshold=1e-31)[1]
    np.testing.assert_allclose(only[3], math.exp(-50), rtol=1e-6)
