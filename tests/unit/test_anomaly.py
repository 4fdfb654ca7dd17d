"""The anomaly head against a slow oracle that takes one stream and one frame at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ManifestError
from pipeline.head import Anomaly, Events
from pipeline.manifest import AnomalyHead, Manifest
from tests import zoo

HOP = 3
FRAMES = 60


def oracle(scores, spec):
    """Events of one stream `[T]` as tuples, in plain Python: what the docstrings of head and manifest promise."""
    found, begun, last, peak = [], None, None, 0.0
    powers: list[float] = []
    for t, score in enumerate(float(s) for s in scores):
        # the running mean, written out: the first frames weigh alike, later ones fade by 1 / memory
        mean = 0.0
        for n, power in enumerate(powers):
            mean += (power - mean) / min(n + 1, spec.memory_frames)
        limit = max(spec.threshold, spec.rise * mean ** (1 / 8))
        if not spec.learn_frames or t < spec.learn_frames:
            powers.append(score**8)
        if score >= limit and t >= spec.learn_frames:
            if begun is None:
                begun, peak = t, 0.0
                found += [("odd_start", t * HOP, t * HOP, score)] * spec.starts
            last, peak = t, max(peak, score)
        elif begun is not None and t - last >= spec.hold_frames:
            found.append(("odd", begun * HOP, (last + 1) * HOP, peak))
            begun = None
    if begun is not None:
        found.append(("odd", begun * HOP, (last + 1) * HOP, peak))
    return found


def rows(head: Anomaly, events: Events, stream: int):
    chosen = events.stream == stream
    columns = (column[chosen].tolist() for column in events[1:])
    return [(head.labels[label], start, end, score) for label, start, end, score in zip(*columns, strict=True)]


SPECS = st.builds(
    AnomalyHead,
    label=st.just("odd"),
    starts=st.booleans(),
    column=st.just(1),
    threshold=st.sampled_from([0.3, 0.6]),
    rise=st.sampled_from([0.0, 0.8, 1.2]),
    memory_frames=st.sampled_from([1, 7, 1000]),
    learn_frames=st.sampled_from([0, 1, 20]),
    hold_frames=st.sampled_from([1, 2, 5]),
)


@settings(max_examples=60, deadline=None)
@given(spec=SPECS, seed=st.integers(0, 999), cut=st.integers(0, FRAMES))
def test_equals_the_oracle(spec: AnomalyHead, seed: int, cut: int) -> None:
    head = Anomaly(spec, HOP)
    x = np.random.default_rng(seed).random((3, FRAMES, 2)).astype(np.float32) ** np.float32(2)
    state = head.initial_state(3)
    first, state = head.step(x[:, :cut], state)
    second, state = head.step(x[:, cut:], state)
    parts = (first, second, head.flush(state))
    for b in range(3):
        got = [event for part in parts for event in rows(head, part, b)]
        expected = oracle(x[b, :, 1], spec)
        assert [event[:3] for event in got] == [event[:3] for event in expected]
        np.testing.assert_allclose([event[3] for event in got], [event[3] for event in expected], rtol=1e-6)


def test_the_threshold_runs_with_the_stream() -> None:
    """The same score is told in a quiet stream, and not in one whose highest scores were like it."""
    head = Anomaly(AnomalyHead(threshold=0.2, rise=2.0), 1)
    quiet, lively = np.full(50, 0.05), np.full(50, 0.4)
    x = np.array([[*quiet, 0.5], [*lively, 0.5]], np.float32)[:, :, None]
    events, _ = head.step(x, head.initial_state(2))
    assert rows(head, events, 0) == [("anomaly_start", 50, 50, 0.5)]
    assert [name for name, *_ in rows(head, events, 1)] == ["anomaly_start", "anomaly"]  # its first frames alone
    assert rows(head, events, 1)[1][1:3] == (0, 1)


def test_a_column_that_is_not_there_is_refused() -> None:
    manifest = zoo.bundle("sensor").manifest
    values = manifest.model_dump() | {"head": {"kind": "anomaly", "column": len(manifest.labels)}}
    with pytest.raises(ManifestError, match="column 5 of 5 classes"):
        Manifest.from_values(values)
