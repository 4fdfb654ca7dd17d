"""The contract over composed pipelines, on rows, as a worker runs them; the oracle is the plain composition."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bundle import Bundle
from pipeline.component import Array, State
from pipeline.errors import RowCorrupt
from tests import zoo
from tests.contract.streaming import Rows, elsewhere, forward_outcome, other_process


@pytest.fixture(params=zoo.ZOO, scope="module")
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return zoo.bundle(str(request.param))


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    yield from other_process()


def block_samples(bundle: Bundle) -> int:
    return bundle.frontend.block * bundle.model.block


def feed_alone(bundle: Bundle, samples: np.ndarray, cuts: list[int], **options: int | None) -> tuple[bytes, ...]:
    rows = Rows(bundle, 1, **options)
    edges = [0, *cuts, len(samples)]
    for n, (start, stop) in enumerate(pairwise(edges)):
        rows.feed([0], [samples[start:stop]], [n == len(edges) - 2])
    return rows.outcome(0)


def test_the_oracle_is_lively(bundle: Bundle) -> None:
    """The signals of this file make models speak, or equality would prove little."""
    events, scores, samples = forward_outcome(bundle, zoo.signal(bundle.manifest.input, 400 * block_samples(bundle)))
    assert len(scores) > 0
    if bundle.manifest.task.startswith("test") and bundle.head.labels:
        assert events.count(b"Event(") >= 3
    assert (len(samples) > 0) == bundle.head.publishes_samples


@pytest.mark.parametrize("blocks", [0, 1, 2, 37])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_step_equals_forward_at_odd_lengths(bundle: Bundle, blocks: int, more: int) -> None:
    length = max(0, blocks * block_samples(bundle) + more)
    samples = zoo.signal(bundle.manifest.input, length)
    third = [length // 3] if length else []
    assert feed_alone(bundle, samples, third) == forward_outcome(bundle, samples)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_chunking_invariance(bundle: Bundle, data: st.DataObject) -> None:
    """Any cut: empty chunks, single samples, huge ones."""
    length = data.draw(st.integers(0, 120 * block_samples(bundle)))
    samples = zoo.signal(bundle.manifest.input, length, seed=data.draw(st.integers(0, 20)))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=12)))
    assert feed_alone(bundle, samples, cuts, max_blocks=data.draw(st.sampled_from([1, 3, 64, None]))) == (
        forward_outcome(bundle, samples)
    )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_batch_invariance(bundle: Bundle, seed: int) -> None:
    """Streams of unequal chunks share batches in changing company and order; each yields what it yields alone."""
    rng = np.random.default_rng(seed)
    block = block_samples(bundle)
    signals = [zoo.signal(bundle.manifest.input, int(n), seed + i) for i, n in
               enumerate(rng.integers(0, 30 * block, 70))]  # fmt: skip
    rows, position = Rows(bundle, len(signals), max_batch=int(rng.integers(1, 65))), [0] * len(signals)
    alive = list(range(len(signals)))
    while alive:
        chosen = rng.permutation(alive)[: int(rng.integers(1, len(alive) + 1))].tolist()
        stops = [min(len(signals[i]), position[i] + int(rng.integers(0, 15 * block))) for i in chosen]
        ends = [stop == len(signals[i]) for i, stop in zip(chosen, stops, strict=True)]
        rows.feed(chosen, [signals[i][position[i] : stop] for i, stop in zip(chosen, stops, strict=True)], ends)
        for i, stop, end in zip(chosen, stops, ends, strict=True):
            position[i] = stop
            if end:
                alive.remove(i)
    for i, samples in enumerate(signals):
        assert rows.outcome(i) == forward_outcome(bundle, samples), f"stream {i}"


def test_row_round_trip_in_another_process_at_every_cut(bundle: Bundle, pool: ProcessPoolExecutor) -> None:
    name = bundle.source.removeprefix("zoo:")
    samples = zoo.signal(bundle.manifest.input, 24 * block_samples(bundle) + 1, seed=5)
    rng = np.random.default_rng(1)
    cuts = np.unique(rng.integers(1, len(samples), 20)).tolist()
    rows = Rows(bundle, 1)
    edges = [0, *cuts, len(samples)]
    for n, (start, stop) in enumerate(pairwise(edges)):
        chunk, end = samples[start:stop], stop == len(samples)
        if n % 2:
            rows.feed([0], [chunk], [end])
            continue
        (stored,) = rows.batcher.layout.dump(rows.rows)
        raw, output = pool.submit(elsewhere, name, stored, chunk, end).result()
        rows.rows = np.frombuffer(raw, rows.batcher.layout.dtype).copy()
        rows.add(0, output)
    assert rows.outcome(0) == forward_outcome(bundle, samples)


def test_a_stream_that_breaks_resets_alone() -> None:
    """Samples that drive a state or a score to infinity reset their own row, and change no byte of a neighbour."""
    bundle = zoo.bundle("look_ahead")
    samples = zoo.signal(bundle.manifest.input, 30, seed=3)
    rows = Rows(bundle, 3)
    rows.feed([0, 1, 2], [samples[:12]] * 3, [False] * 3)
    picked = rows.rows.copy()
    with np.errstate(over="ignore"):
        outputs = rows.batcher.run(picked, [samples[12:], samples[12:] * 0 + 3e38, samples[12:]], np.array([True] * 3))
    assert [output.broken for output in outputs] == [False, True, False]
    fresh = np.array(rows.batcher.layout.blank)
    assert picked[1]["model.past"].tobytes() == fresh["model.past"].tobytes()
    assert picked[1]["frames"] == 0
    for i in (0, 2):
        rows.add(i, outputs[i])
        assert rows.outcome(i) == forward_outcome(bundle, samples)


def test_the_rest_of_a_broken_chunk_is_skipped() -> None:
    """However many steps were left of it: the row is as fresh as one that saw nothing."""
    bundle = zoo.bundle("look_ahead")
    samples = zoo.signal(bundle.manifest.input, 40)
    rows = Rows(bundle, 1, max_blocks=4)
    with np.errstate(over="ignore"):
        (output,) = rows.batcher.run(rows.rows, [np.concatenate([samples[:4] * 0 + 3e38, samples])], np.array([False]))
    assert output.broken
    assert rows.rows.tobytes() == np.array([rows.batcher.layout.blank]).tobytes()


def test_a_stream_that_breaks_at_its_very_end_publishes_no_infinity() -> None:
    """The last three samples overflow only in what the end still owes; the neighbour's bytes stay."""
    bundle = zoo.bundle("look_ahead")
    samples = zoo.signal(bundle.manifest.input, 30, seed=3)
    wild = np.zeros_like(samples)
    wild[-3:] = np.array([-1.0, 1.1, 0.87], np.float32)[:, None] * np.float32(1e38)
    rows = Rows(bundle, 2)
    with np.errstate(over="ignore"):
        outputs = rows.batcher.run(rows.rows, [wild, samples], np.array([True, True]))
    assert [output.broken for output in outputs] == [True, False]
    assert np.isfinite(np.concatenate(outputs[0].scores)).all()
    rows.add(1, outputs[1])
    assert rows.outcome(1) == forward_outcome(bundle, samples)


def test_a_poisoned_row_is_refused(bundle: Bundle) -> None:
    """A stored row is restored whole or not at all: foreign, cut short, or holding NaN."""
    rows = Rows(bundle, 1)
    rows.feed([0], [zoo.signal(bundle.manifest.input, 9 * block_samples(bundle))], [False])
    layout = rows.batcher.layout
    (stored,) = layout.dump(rows.rows)
    assert layout.parse(stored) == stored
    rows.rows[f"model.{bundle.model.fields[0].name}"] = np.nan
    for wrong in (stored[:-1], stored + b"x", b"", b"x" * len(stored), *layout.dump(rows.rows)):
        with pytest.raises(RowCorrupt):
            layout.parse(wrong)


def test_flush_once_and_nothing_after_the_end(bundle: Bundle) -> None:
    """The end yields what was pending; the same row, blanked for its next tenant, yields what a new stream does."""
    samples = zoo.signal(bundle.manifest.input, 20 * block_samples(bundle) + 3, seed=9)
    rows = Rows(bundle, 1)
    rows.feed([0], [samples], [True])
    once = rows.outcome(0)
    assert once == forward_outcome(bundle, samples)
    rows.rows[:] = rows.batcher.layout.blank
    rows.events, rows.scores, rows.samples = [[]], [[]], [[]]
    rows.feed([0], [samples], [True])
    assert rows.outcome(0) == once


def test_look_ahead_against_arithmetic() -> None:
    """A model that trails by three frames, against the sum that it stands for."""
    bundle = zoo.bundle("look_ahead")
    x = zoo.signal(bundle.manifest.input, 50)
    scores = bundle.forward(x).scores
    padded = np.pad(x, ((3, 3), (0, 0))).astype(np.float64)
    expected = sum(tap * padded[j : j + 50] for j, tap in enumerate(zoo.LOOK_AHEAD_TAPS.astype(np.float64)))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_a_row_keeps_the_rest_of_a_block_as_it_came(bundle: Bundle) -> None:
    """Also the samples at both ends of their range."""
    spec, size = bundle.manifest.input, block_samples(bundle)
    rows = Rows(bundle, 1)
    kept = rows.batcher.layout.dtype["rest"]
    assert (kept.base, kept.shape) == (np.dtype(spec.sample_type), (size - 1, spec.channels))
    ends = np.array([-32768, 32767]) if spec.sample_type == "int16" else np.array([-1.0, 1.0])
    signal = np.resize(ends, (size - 1, spec.channels)).astype(spec.sample_type)
    rows.feed([0], [signal], [False])
    assert rows.rows["rest"][0].tobytes() == signal.tobytes()


def test_a_row_keeps_the_signal_behind_it_as_it_came(bundle: Bundle) -> None:
    """What a window reaches back to is in a row as samples of the topic's type: values from all over an int16's."""
    spec = bundle.manifest.input
    rows = Rows(bundle, 1)
    fields = [field for field in bundle.frontend.fields if field.signal]
    length = max([int(field.shape[0]) for field in fields], default=0)
    for first in range(8) if fields else ():
        values = np.linspace(first, 65535, length).astype(int) - 32768
        came = np.clip(values, -32768, 32767) / (1 if spec.sample_type == "int16" else 32768)
        signal = np.repeat(came.astype(spec.sample_type)[:, None], spec.channels, axis=1)
        whole = np.zeros((-len(signal) % block_samples(bundle), spec.channels), spec.sample_type)
        rows.feed([0], [np.concatenate([whole, signal])], [False])
        for field in fields:
            kept = rows.rows[f"frontend.{field.name}"][0]
            assert kept.dtype == spec.sample_type
            assert kept.tobytes() == signal.tobytes()


@pytest.mark.parametrize("bundle", ["digits"], indirect=True)
@pytest.mark.parametrize(("blocks", "together"), [(1, 16), (16, 16), (20, 12), (40, 4), (64, 4), (200, 4)])
def test_what_is_done_for_several_steps_has_the_bound_of_one(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, blocks: int, together: int
) -> None:
    """Frames of as many streams as there are, while there are few of each; of long chunks as many as a step takes."""
    seen, step = [], bundle.frontend.step

    def watched(x: Array, state: State) -> tuple[Array, State]:
        seen.append((len(x), x.shape[1] // block_samples(bundle)))
        return step(x, state)

    monkeypatch.setattr(bundle.frontend, "step", watched)
    samples = zoo.signal(bundle.manifest.input, blocks * block_samples(bundle))
    Rows(bundle, 48, max_batch=4, max_blocks=64).feed(list(range(48)), [samples] * 48, [False] * 48)
    assert seen[0] == (together, min(blocks, 64))
    assert all(streams * length <= 4 * 64 for streams, length in seen)


@pytest.mark.parametrize("bundle", ["digits"], indirect=True)
@pytest.mark.parametrize(("streams", "steps"), [(4, [4]), (5, [3, 2]), (9, [3, 3, 3]), (10, [4, 3, 3])])
def test_a_batch_is_run_in_steps_of_even_size(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, streams: int, steps: list[int]
) -> None:
    seen, step = [], bundle.model.step

    def watched(x: Array, state: State) -> tuple[Array, State]:
        seen.append(len(x))
        return step(x, state)

    monkeypatch.setattr(bundle.model, "step", watched)
    samples = zoo.signal(bundle.manifest.input, block_samples(bundle))
    Rows(bundle, streams, max_batch=4).feed(list(range(streams)), [samples] * streams, [False] * streams)
    assert seen == steps
