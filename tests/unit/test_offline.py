"""A bundle over a whole recording: what it refuses, and that chunks change no byte."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import audio
from pipeline.bundle import SHIPPED, Bundle, load
from pipeline.errors import ConfigError, ManifestError
from pipeline.head import Keywords
from pipeline.manifest import KeywordsHead
from pipeline.offline import Run, run
from pipeline.outbox import Cutter
from tests import zoo

NAMES = list(zoo.ZOO)


@cache
def signal(name: str) -> np.ndarray:
    bundle = zoo.bundle(name)
    return zoo.signal(bundle.manifest.input, 70 * bundle.frontend.block * bundle.model.block + 3, seed=5)


@cache
def whole(name: str) -> Run:
    return run(zoo.bundle(name), signal(name))


def sound(found: Run) -> bytes | None:
    """The audio's bytes, for a head that makes some."""
    return None if found.samples is None else found.samples.tobytes()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(share=st.floats(0.002, 1.5))
def test_chunks_change_no_byte(name: str, share: float) -> None:
    found = run(zoo.bundle(name), signal(name), chunk_samples=max(1, int(share * len(signal(name)))))
    assert found.scores.tobytes() == whole(name).scores.tobytes()
    assert found.events == whole(name).events
    assert sound(found) == sound(whole(name))
    assert found.seconds == whole(name).seconds


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_is_forward(name: str) -> None:
    bundle = zoo.bundle(name)
    events, scores, samples = bundle.forward(signal(name))
    labels = [bundle.head.labels[i] for i in events.label]
    assert whole(name).scores.tobytes() == scores.tobytes()
    assert sound(whole(name)) == (None if samples is None else samples.tobytes())
    assert [event.label for event in whole(name).events] == labels
    assert [event.score for event in whole(name).events] == [round(float(s), 6) for s in events.score]
    assert whole(name).seconds == len(signal(name)) / bundle.manifest.input.sample_rate_hz


def test_events_lie_within_the_recording_and_in_order() -> None:
    found = whole("audio")
    assert len(found.events) >= 3
    for event in found.events:
        assert 0 <= event.start_s <= event.end_s <= found.seconds
        assert 0 <= event.score <= 1
    ends = [event.end_s for event in found.events]
    assert ends == sorted(ends)


def test_times_are_those_of_the_frames() -> None:
    """Frames of 77 samples at 16 kHz, and no event behind the last sample."""
    manifest = zoo.bundle("audio").manifest
    assert isinstance(manifest.head, KeywordsHead)
    head = Keywords(manifest.head, manifest.labels)  # in frames
    events, state = head.step(whole("audio").scores[None], head.initial_state(1))
    frames = [
        (start, end) for part in (events, head.flush(state)) for start, end in zip(part.start, part.end, strict=True)
    ]
    last = len(signal("audio")) / 16_000
    expected = [(min(start * 77 / 16_000, last), min(end * 77 / 16_000, last)) for start, end in frames]
    assert [(event.start_s, event.end_s) for event in whole("audio").events] == expected


@pytest.mark.parametrize("samples", [0, 1, 76])
def test_less_than_a_frame(samples: int) -> None:
    found = run(zoo.bundle("audio"), np.zeros(samples, np.int16))
    assert found.seconds == samples / 16_000
    assert len(found.scores) == (1 if samples else 0) + 5  # one padded frame, and the tail


def test_mono_may_be_a_vector_or_a_column() -> None:
    again = run(zoo.bundle("audio"), signal("audio")[:, 0])
    assert again.scores.tobytes() == whole("audio").scores.tobytes()


WRONG: dict[str, tuple[str, object, str]] = {
    "float32 far beyond -1..1": ("audio", np.full(9, 500, np.float32), r"float32 samples reach 500; expected -1\.\.1"),
    "float64": ("sensor", np.zeros((9, 6)), "float64"),
    "big-endian": ("audio", np.zeros(9, ">i2"), ">i2"),
    "a list": ("audio", [1, 2, 3], "int64"),
    "two channels for one": ("audio", np.zeros((9, 2), np.int16), r"shape \[9, 2\]"),
    "a vector for six channels": ("sensor", np.zeros(12, np.float32), r"shape \[12\]"),
    "channels first": ("sensor", np.zeros((6, 9), np.float32), r"shape \[6, 9\]"),
    "a scalar": ("audio", np.int16(3), r"shape \[\]"),
    "three axes": ("audio", np.zeros((1, 9, 1), np.int16), r"shape \[1, 9, 1\]"),
    "NaN": ("sensor", np.full((9, 6), np.nan, np.float32), "NaN or infinity"),
    "infinity": ("sensor", np.full((9, 6), -np.inf, np.float32), "NaN or infinity"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_samples(case: str) -> None:
    name, samples, words = WRONG[case]
    with pytest.raises(ConfigError, match=words):
        run(zoo.bundle(name), samples)  # type: ignore[arg-type]


def pushed(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    """What a producer makes of it, as a worker reads it."""
    spec = bundle.manifest.input
    data = b"".join(Cutter(spec, 1000).cut("s", x))
    return np.frombuffer(data, spec.sample_type).reshape(-1, spec.channels)


def test_other_samples_are_converted_as_a_push_converts_them() -> None:
    """float32 for int16, what overshoots included, and int16 for float32: to the byte."""
    rng = np.random.default_rng(0)
    cases = [
        ("audio", rng.uniform(-1.2, 1.2, 9000).astype(np.float32)),
        ("sensor", rng.integers(-32768, 32768, (90, 6)).astype(np.int16)),
    ]
    for name, x in cases:
        bundle = zoo.bundle(name)
        found, expected = run(bundle, x), run(bundle, pushed(bundle, x))
        assert found.events == expected.events
        assert found.scores.tobytes() == expected.scores.tobytes()


@pytest.mark.parametrize("named", ["digits", Path("digits"), SHIPPED / "digits.onnx", str(SHIPPED / "digits.onnx")])
def test_a_bundle_by_its_name_or_path(named: str | Path) -> None:
    samples = audio.read(SHIPPED.parent / "recordings" / "digits.flac", load("digits").manifest.input)
    assert run(named, samples[:8000]).events == run(load("digits"), samples[:8000]).events


def test_what_is_no_bundle_is_said_to_be_none() -> None:
    with pytest.raises(ManifestError, match="no bundle at 'letters'"):
        run("letters", np.zeros(9, np.int16))
    with pytest.raises(ManifestError, match=r"load was given ndarray .*expected a path .*digits"):
        run(np.zeros(9, np.int16), np.zeros(9, np.int16))  # type: ignore[arg-type]


@pytest.mark.parametrize("rate_hz", ["8000", -8000, float("nan"), True])
def test_wrong_rates(rate_hz: object) -> None:
    with pytest.raises(ConfigError, match=r"takes 16000 Hz"):
        run(zoo.bundle("audio"), np.zeros(9, np.int16), rate_hz=rate_hz)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["abc", [[1], [2, 3]], [1, 2], [np.nan] * 8, [None] * 8])
def test_wrong_given(given: object) -> None:
    with pytest.raises(ConfigError, match=r"given .*takes 8, all finite"):
        run(zoo.bundle("given"), np.zeros((9, 2), np.float32), given=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_samples", [0, -1, "a", 1.5])
def test_wrong_chunks(chunk_samples: int) -> None:
    with pytest.raises(ConfigError, match=f"chunks of {chunk_samples} samples"):
        run(zoo.bundle("audio"), np.zeros(9, np.int16), chunk_samples=chunk_samples)


def test_a_signal_that_breaks_the_state_is_told_with_its_time() -> None:
    """Finite samples whose scores are not: at 10 Hz, in the third chunk of one second."""
    samples = np.zeros((50, 2), np.float32)
    samples[25] = 3e38
    with pytest.raises(ConfigError, match=r"non-finite near 2\.00 s"):
        run(zoo.bundle("look_ahead"), samples, chunk_samples=10)
