"""The overlap-add head against arithmetic on whole signals, and in the batcher: N samples in, N samples out."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from pipeline.bundle import Bundle, from_bytes
from pipeline.frontend import Window
from pipeline.head import OverlapAdd
from pipeline.manifest import InputSpec, Manifest, ModelSpec, OverlapAddHead, StateSpec, WindowFrontend
from tests import zoo
from tests.contract.streaming import Rows, forward_outcome

SIZES = [(64, 16), (64, 64), (10, 7), (7, 3), (5, 1), (9, 8)]
"""Window and hop: dividing, not dividing, one sample, no overlap."""


def arithmetic(windows, hop):
    """`[T, window]` to all samples, those before the beginning included: each window where it lies, in float64."""
    total = np.zeros(max(0, len(windows) - 1) * hop + windows.shape[1])
    for t, window in enumerate(windows.astype(np.float64)):
        total[t * hop : t * hop + len(window)] += window
    return total[windows.shape[1] - hop :]


def joined(head, x, cuts):
    """All samples of a batch `[B, T, window]`, from sample 0 on."""
    state, parts = head.initial_state(len(x)), []
    assert state["at"].tolist() == [-head.lead_samples] * len(x)
    for start, stop in pairwise([0, *cuts, x.shape[1]]):
        made, state = head.step(x[:, start:stop], state)
        assert made.shape == (len(x), (stop - start) * head.hop_samples)
        parts.append(made)
    assert state["at"].tolist() == [sum(part.shape[1] for part in parts) - head.lead_samples] * len(x)
    return np.concatenate([*parts, head.flush(state)], axis=1)[:, head.lead_samples :]


@pytest.mark.parametrize(("window", "hop"), SIZES)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 30), max_size=6).map(sorted))
@settings(max_examples=40, deadline=None)
def test_any_cut_is_the_sum_of_the_windows(window, hop, seed, cuts):
    x = np.random.default_rng(seed).standard_normal((2, 30, window)).astype(np.float32)
    head = OverlapAdd(window, hop)
    found = joined(head, x, cuts)
    assert found.tobytes() == joined(head, x, []).tobytes()
    assert found.shape == (2, 30 * hop)
    for b in range(2):
        np.testing.assert_allclose(found[b], arithmetic(x[b], hop), rtol=1e-5, atol=1e-5)


def test_the_oldest_window_comes_first():
    """(1e8 - 1e8) + 1 is 1; in any other order it would be 0."""
    x = np.zeros((1, 4, 3), np.float32)
    x[0, 0, 2], x[0, 1, 1], x[0, 2, 0] = 1e8, -1e8, 1
    for cuts in ([], [1], [2], [1, 2, 3]):
        assert joined(OverlapAdd(3, 1), x, cuts)[0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(("window", "hop"), [(64, 16), (64, 32), (10, 5)])
def test_windows_that_sum_to_one_give_the_signal_back_in_its_place(window, hop):
    signal = np.random.default_rng(1).standard_normal((1, 40 * hop, 1)).astype(np.float32)
    frontend, head = Window(window, hop, 1), OverlapAdd(window, hop)
    frames, _ = frontend.step(signal, frontend.initial_state(1))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    found = joined(head, frames * (hann * 2 * hop / window).astype(np.float32), [3])
    whole = 40 * hop - head.lead_samples  # behind it, windows are missing that would have begun before the end
    np.testing.assert_allclose(found[0, :whole], signal[0, :whole, 0], atol=1e-5)


# --- in the batcher ---------------------------------------------------------------------------------------------------


@cache
def passing(window: int, hop: int, tail_frames: int = 0, plus: float = 0.0) -> Bundle:
    """Every window is what comes in; and `plus` with the first, twice as much with each one behind it (one a call)."""
    nodes = [helper.make_node("Add", ["x", "h"], ["scores"]), helper.make_node("Add", ["h", "h"], ["hn"])]
    of = {"x": ["B", "T", window], "scores": ["B", "T", window], "h": ["B", 1, 1], "hn": ["B", 1, 1]}
    about = {name: helper.make_tensor_value_info(name, zoo.FLOAT, shape) for name, shape in of.items()}
    graph = helper.make_graph(nodes, "passing", [about["x"], about["h"]], [about["scores"], about["hn"]])
    manifest = Manifest(
        task="test passing",
        labels=(),
        licence="Apache-2.0",
        provenance=zoo.PROVENANCE,
        input=InputSpec(sample_rate_hz=8000, sample_type="float32"),
        frontend=WindowFrontend(window_samples=window, hop_samples=hop),
        model=ModelSpec(
            input="x", output="scores", features=window, classes=window, tail_frames=tail_frames, one_block=True,
            states=(StateSpec(input="h", output="hn", shape=(1, 1, 1), batch_axis=0, initial=plus),),
        ),
        head=OverlapAddHead(),
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return from_bytes(zoo.with_manifest(model, manifest), "passing")


@pytest.mark.parametrize("tail_frames", [0, 5])
@pytest.mark.parametrize(("window", "hop"), SIZES)
@given(length=st.integers(0, 200), data=st.data())
@settings(max_examples=15, deadline=None)
def test_as_many_samples_come_out_as_went_in(window, hop, tail_frames, length, data):
    bundle = passing(window, hop, tail_frames)
    signal = np.random.default_rng(length).standard_normal((length, 1)).astype(np.float32)
    cuts = data.draw(st.lists(st.integers(0, length), max_size=5).map(sorted))
    rows = Rows(bundle, 1)
    for start, stop in pairwise([0, *cuts, length + 1]):
        rows.feed([0], [signal[start:stop]], [stop > length])
    found = np.concatenate([np.empty(0, np.float32), *rows.samples[0]])
    assert found.shape == (length,)
    assert rows.outcome(0) == forward_outcome(bundle, signal)
    lead = window - hop  # before the signal, and behind it: so the last samples are in as many windows as the others
    padded = np.concatenate([np.zeros(lead), signal[:, 0], np.zeros(lead + -(length + lead) % hop)])
    windows = np.array([padded[t * hop : t * hop + window] for t in range(-(-(length + lead) // hop))])
    np.testing.assert_allclose(found, arithmetic(windows.reshape(-1, window), hop)[:length], rtol=1e-5, atol=1e-5)


def test_a_sample_is_said_as_soon_as_no_window_can_reach_it():
    bundle = passing(64, 16)
    rows = Rows(bundle, 1)
    said = []
    for chunk in np.ones((8, 16, 1), np.float32):
        rows.feed([0], [chunk], [False])
        said.append(sum(map(len, rows.samples[0])))
    assert said == [0, 0, 0, 16, 32, 48, 64, 80]


def test_a_sum_that_overflows_breaks_its_own_stream_alone():
    """Every window is finite; four of them are not. No infinity is published, and none stays in a row."""
    bundle = passing(64, 16)
    signal = np.random.default_rng(0).standard_normal((100, 1)).astype(np.float32)
    loud = np.full((100, 1), 3e38, np.float32)
    rows = Rows(bundle, 3)
    outputs = rows.batcher.run(rows.rows, [signal, loud, signal], np.array([True, True, True]))
    assert [output.broken for output in outputs] == [False, True, False]
    assert all(np.isfinite(part).all() for part in outputs[1].samples)
    assert rows.rows["head.sums"][1].tolist() == [0] * 48
    assert rows.rows["head.at"][1] == -48
    for i in (0, 2):
        rows.add(i, outputs[i])
        assert rows.outcome(i) == forward_outcome(bundle, signal)


def test_a_sum_that_overflows_at_the_very_end():
    """In what the tail adds, when the last sample has come: five windows of 1, 2, 4, 8 and 16e37, then one of 32e37."""
    rows = Rows(passing(64, 16, tail_frames=1, plus=1e37), 1)
    rows.feed([0], [np.zeros((20, 1), np.float32)], [False])
    assert not rows.samples[0]
    (output,) = rows.batcher.run(rows.rows, [np.zeros((1, 1), np.float32)], np.array([True]))
    assert output.broken
    np.testing.assert_allclose(np.concatenate(output.samples), [15e37] * 16 + [30e37] * 5, rtol=1e-6)
    assert rows.rows["head.at"][0] == -48
