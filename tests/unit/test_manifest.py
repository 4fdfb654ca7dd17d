"""The manifest: what contradicts itself is refused, by the name of the field, with what was got."""

from __future__ import annotations

import contextlib
import json
from copy import deepcopy
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ManifestError
from pipeline.manifest import (
    HeadSpec,
    InputSpec,
    KeywordsHead,
    Manifest,
    ModelSpec,
    PowerFrontend,
    Provenance,
    ScoresHead,
    StateSpec,
)
from tests import zoo

AUDIO = json.loads(zoo.bundle("audio").manifest.to_json())
SENSOR = json.loads(zoo.bundle("sensor").manifest.to_json())
STATE = ("model", "states", 0)

Path = tuple[str | int, ...]


def changed(good: dict[str, Any], path: Path, value: object) -> str:
    """The manifest with one field changed, as JSON."""
    if not path:
        return json.dumps(value)
    bad = deepcopy(good)
    at: Any = bad
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(bad)


BAD: dict[str, tuple[dict[str, Any], Path, object, list[str]]] = {
    "hop beyond the window": (
        AUDIO, ("frontend", "hop_samples"), 201, ["frontend.power", "hop_samples 201", "window_samples 200"],
    ),
    "bins that are not features": (AUDIO, ("frontend", "window_samples"), 202, ["frames of 102", "takes 101"]),
    "channels that are not features": (SENSOR, ("input", "channels"), 5, ["frames of 5", "takes 6"]),
    "two channels of audio": (AUDIO, ("input", "channels"), 2, ["1 channel", "has 2"]),
    "labels that are not classes": (AUDIO, ("labels",), ["a", "background"], ["2 labels", "4 classes"]),
    "a label twice": (AUDIO, ("labels",), ["a", "b", "b", "background"], ["labels", "differ"]),
    "no label": (AUDIO, ("labels",), [], ["0 labels for a model of 4 classes"]),
    "a background that is no label": (AUDIO, ("head", "background"), "hush", ["background 'hush'", "class_0"]),
    "a batch axis beyond the shape": (AUDIO, (*STATE, "batch_axis"), 3, ["'h'", "[1, 1, 24]", "batch_axis 3"]),
    "a batch axis that holds no 1": (AUDIO, (*STATE, "batch_axis"), 2, ["'h'", "[1, 1, 24]", "batch_axis 2"]),
    "a negative batch axis": (AUDIO, (*STATE, "batch_axis"), -1, ["batch_axis", "'-1'"]),
    "a scalar state": (AUDIO, (*STATE, "shape"), [], ["'h'", "[]", "batch_axis 1"]),
    "an empty state": (AUDIO, (*STATE, "shape"), [0, 1, 24], ["'h'", "[0, 1, 24]", "absurd"]),
    "a negative shape": (AUDIO, (*STATE, "shape"), [-1, 1, 24], ["'h'", "[-1, 1, 24]", "absurd"]),
    "an absurd shape": (AUDIO, (*STATE, "shape"), [2**14, 1, 2**13], ["'h'", "absurd", "2**26"]),
    "nine axes": (AUDIO, (*STATE, "shape"), [1] * 9, ["model.states.0.shape", "at most 8"]),
    "an unknown element type": (AUDIO, (*STATE, "dtype"), "complex64", ["model.states.0.dtype", "complex64"]),
    "no state": (AUDIO, ("model", "states"), [], ["model.states", "at least 1"]),
    "a state named as the input": (AUDIO, (*STATE, "input"), "x", ["model", "input name stands twice", "'x'"]),
    "a state's output twice": (AUDIO, (*STATE, "output"), "cn", ["model", "output name stands twice", "'cn'"]),
    "an initial value of infinity": (AUDIO, (*STATE, "initial"), float("inf"), ["model.states.0.initial", "inf"]),
    "an initial value that is no number": (AUDIO, (*STATE, "initial"), float("nan"), ["states.0.initial", "nan"]),
    "an initial value beyond its type": (AUDIO, (*STATE, "initial"), 1e39, ["states.0", "initial 1e+39 is no float32"]),
    "a state of terabytes": (AUDIO, (*STATE, "shape"), [2**40, 1, 24], ["'h'", "absurd"]),
    "two states beyond a row": (AUDIO, ("model", "states"), [
        {"input": n, "output": n + "n", "shape": [1, 1, 2**24 - 64], "batch_axis": 1} for n in "hc"
    ], ["carry 134", "at most 67108864", "make states"]),
    "thousands of states": (AUDIO, ("model", "states"), [
        {"input": f"h{n}", "output": f"o{n}", "shape": [1, 1, 1], "batch_axis": 1} for n in range(3000)
    ], ["model.states", "at most 256"]),
    "a million states that are none": (AUDIO, ("model", "states"), [0] * 100_000, ["model.states.0", " more"]),
    "a block of gigabytes": (SENSOR, ("model",), {
        **SENSOR["model"], "block": 65_536, "features": 2**20
    }, ["65536 frames at a time", "at most 67108864"]),
    "a hop of gigabytes": (AUDIO, (), {
        **AUDIO, "frontend": {"kind": "power", "window_samples": 65_536, "hop_samples": 65_536},
        "model": {**AUDIO["model"], "features": 32_769, "block": 500},
    }, ["carry", "hop_samples"]),
    "a batch of a thousand million": (AUDIO, (*STATE, "shape"), [1, 10**9, 24], ["'h'", "must hold 1 at batch_axis 1"]),
    "a label of megabytes": (AUDIO, ("labels", 0), "x" * 900_000, ["labels.0", "at most 200"]),
    "too many labels": (AUDIO, ("labels",), ["x"] * 70_000, ["labels", "at most 65536"]),
    "a note of a book": (AUDIO, ("provenance", "note"), "x" * 100_000, ["provenance.note", "at most 2000"]),
    "a number of a hundred thousand digits": (AUDIO, ("model", "block"), 10**4000, ["model.block"]),
    "a whole number that is none": (AUDIO, STATE, {
        **AUDIO["model"]["states"][0], "dtype": "int64", "initial": 0.5
    }, ["initial 0.5 is no int64"]),
    "scores without time": (AUDIO, ("model", "output_axes"), "BC", ["T is in 'BTF', but not in 'BC'", "one_block"]),
    "constants of half a gigabyte": (AUDIO, ("model", "constants"), [
        {"input": f"c{n}", "value": 1.0, "shape": [2**20], "dtype": "float64"} for n in range(64)
    ], ["constants of 536870912 bytes", "at most 67108864"]),
    "an end of a hundred thousand calls": (AUDIO, ("model",), {
        **AUDIO["model"], "one_block": True, "latency": 60_000, "tail_frames": 60_000
    }, ["latency 60000", "tail_frames 60000", "120000 calls", "at most 4096"]),
    "a block of nothing": (AUDIO, ("model", "block"), 0, ["model.block", "'0'"]),
    "a negative latency": (AUDIO, ("model", "latency"), -1, ["model.latency", "'-1'"]),
    "a release above the threshold": (AUDIO, ("head", "release"), 0.9, ["release 0.9", "threshold 0.5"]),
    "a threshold beyond certainty": (AUDIO, ("head", "threshold"), 1.5, ["head.keywords.threshold", "'1.5'"]),
    "a rate of zero": (AUDIO, ("input", "sample_rate_hz"), 0, ["input.sample_rate_hz", "'0'"]),
    "a rate that is no number": (AUDIO, ("input", "sample_rate_hz"), float("nan"), ["input.sample_rate_hz", "nan"]),
    "an unknown sample type": (AUDIO, ("input", "sample_type"), "int24", ["input.sample_type", "int24"]),
    "an unknown frontend": (AUDIO, ("frontend", "kind"), "mfcc", ["frontend", "mfcc"]),
    "an unknown head": (AUDIO, ("head", "kind"), "ctc", ["head", "ctc"]),
    "another version": (AUDIO, ("version",), 2, ["version", "'2'"]),
    "an unknown key": (AUDIO, ("colour",), "red", ["colour", "not permitted", "'red'"]),
    "an unknown key inside": (AUDIO, ("model", "hidden"), 24, ["model.hidden", "not permitted"]),
    "an unknown key in a tagged part": (AUDIO, ("frontend", "mels"), 40, ["frontend.power.mels", "not permitted"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_contradiction_is_named(case: str) -> None:
    good, path, value, words = BAD[case]
    with pytest.raises(ManifestError) as raised:
        Manifest.from_json(changed(good, path, value), "here.onnx")
    message = str(raised.value)
    assert message.startswith("here.onnx: ")
    for word in words:
        assert word in message
    assert len(message) < 4000


def test_a_huge_manifest_is_not_even_parsed() -> None:
    with pytest.raises(ManifestError, match=r"a manifest of 3\d+ bytes; at most 1048576"):
        Manifest.from_json(json.dumps({**AUDIO, "task": "x" * 3_000_000}))


@pytest.mark.parametrize("text", ["[" * 500_000, '{"model":' * 100_000, '{"task": ' + "[" * 1000 + "]" * 1000 + "}"])
def test_json_within_json_within_json(text: str) -> None:
    with pytest.raises(ManifestError, match="does not hold together"):
        Manifest.from_json(text)


def test_many_faults_make_no_long_message() -> None:
    with pytest.raises(ManifestError, match=r"and \d+ more") as raised:
        Manifest.from_json(json.dumps({**AUDIO, "labels": [0] * 10_000}))
    assert len(str(raised.value)) < 4000


@pytest.mark.parametrize("path", [("task",), ("labels",), ("model", "states", 0, "output"), ("frontend", "kind")])
def test_a_missing_field_is_named(path: Path) -> None:
    bad = deepcopy(AUDIO)
    at: Any = bad
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    with pytest.raises(ManifestError, match=str(path[0])):
        Manifest.from_json(json.dumps(bad))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "\0"])
def test_what_is_no_json_object(text: str) -> None:
    with pytest.raises(ManifestError, match="does not hold together"):
        Manifest.from_json(text)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x), max_leaves=5))
def test_no_value_of_any_field_escapes_as_another_error(value: object) -> None:
    """Whatever stands in a field: a manifest, or a ManifestError."""
    for path in (("labels",), ("model",), ("model", "states"), (*STATE, "shape"), ("frontend",), ("input", "channels")):
        with contextlib.suppress(ManifestError):
            Manifest.from_json(changed(AUDIO, path, value))


@pytest.mark.parametrize("name", zoo.ZOO)
def test_json_round_trip_of_the_zoo(name: str) -> None:
    manifest = zoo.bundle(name).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


names = st.text(min_size=1, max_size=8)
small = st.integers(1, 40)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any manifest of an audio model."""
    labels = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    window = draw(st.integers(2, 65_536))
    tensors = draw(st.lists(names, min_size=4, max_size=4, unique=True))
    axis = draw(st.integers(0, 2))
    shape = draw(st.lists(small, min_size=2, max_size=4))
    threshold = draw(st.floats(0.001, 1))
    dtype = draw(st.sampled_from(["float32", "float16", "int64"]))
    head: HeadSpec = draw(
        st.just(ScoresHead())
        | st.builds(
            KeywordsHead,
            background=st.sampled_from(labels),
            threshold=st.just(threshold),
            release=st.floats(0.001, threshold),
            smooth_frames=small,
        )
    )
    return Manifest(
        task=draw(st.text()),
        labels=tuple(labels),
        licence=draw(st.text()),
        provenance=Provenance(
            recipe=draw(st.text()),
            commit="c",
            data_sha256="d",
            created="now",
            scores=draw(st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=3)),
        ),
        input=InputSpec(
            sample_rate_hz=draw(st.floats(0.01, 1e6)), sample_type=draw(st.sampled_from(["int16", "float32"]))
        ),
        frontend=PowerFrontend(window_samples=window, hop_samples=draw(st.integers(1, window))),
        model=ModelSpec(
            input=tensors[0],
            output=tensors[1],
            features=window // 2 + 1,
            classes=len(labels),
            states=(
                StateSpec(
                    input=tensors[2],
                    output=tensors[3],
                    shape=(*shape[:axis], 1, *shape[axis:]),
                    batch_axis=min(axis, len(shape)),
                    dtype=dtype,
                    initial=draw(
                        st.integers(-(2**31), 2**31).map(float) if dtype == "int64" else st.floats(-65_504, 65_504)
                    ),
                ),
            ),
            block=draw(small),
        ),
        head=head,
    )


@given(manifests())
def test_json_round_trip(manifest: Manifest) -> None:
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.to_json() == manifest.to_json()


@given(manifests())
def test_row_shape_and_rates_by_arithmetic(manifest: Manifest) -> None:
    state = manifest.model.states[0]
    widened = list(state.row_shape)
    widened.insert(state.batch_axis, 1)
    assert tuple(widened) == state.shape
    assert manifest.frame_rate_hz * manifest.hop_samples == pytest.approx(manifest.input.sample_rate_hz)


def test_a_score_that_is_no_number_never_gets_into_a_manifest() -> None:
    """JSON has no NaN: it would be written as null, and the bundle could never be read again."""
    with pytest.raises(pydantic.ValidationError, match="accuracy"):
        Provenance(recipe="r", commit="c", data_sha256="d", created="now", scores={"accuracy": float("nan")})


def test_frozen_in_every_part() -> None:
    manifest = zoo.bundle("audio").manifest
    for part in (manifest, manifest.input, manifest.frontend, manifest.model, manifest.model.states[0], manifest.head):
        field = next(iter(type(part).model_fields))
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(part, field, getattr(part, field))
