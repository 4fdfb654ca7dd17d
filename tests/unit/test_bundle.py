"""Opening a bundle: what is corrupt, foreign or contradicts its graph is refused, both sides named."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle import SHIPPED, from_bytes, load
from pipeline.errors import ManifestError
from pipeline.manifest import METADATA_KEY, Manifest
from tests import zoo

DIGITS = (SHIPPED / "digits.onnx").read_bytes()


def refused(model: bytes, *words: str) -> None:
    with pytest.raises(ManifestError) as raised:
        from_bytes(model, "here.onnx")
    assert str(raised.value).startswith("here.onnx: ")
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("name", sorted(zoo.ZOO))
def test_what_a_machine_makes_of_a_bundle_is_always_the_same_and_seldom_anothers(name: str) -> None:
    made = zoo.bundle(name).arithmetic()
    assert re.fullmatch("[0-9a-f]{8}", made)
    assert from_bytes(zoo.ZOO[name](), "again").arithmetic() == made
    assert zoo.bundle("sensor" if name == "audio" else "audio").arithmetic() != made


def sensor(**model: object) -> bytes:
    """The sensor bundle, other things in its manifest's model than in its graph."""
    manifest = zoo.bundle("sensor").manifest
    changes: dict[str, object] = {k: v for k, v in model.items() if not k.startswith("state_")}
    states = {k.removeprefix("state_"): v for k, v in model.items() if k.startswith("state_")}
    state = manifest.model.states[0].model_copy(update=states)
    spec = manifest.model.model_copy(update={"states": (state,), **changes})
    fitting = {
        "model": spec,
        "input": manifest.input.model_copy(update={"channels": spec.features}),
        "labels": tuple(f"label {n}" for n in range(spec.classes)),
    }
    return zoo.with_manifest(graph(), manifest.model_copy(update=fitting))


def graph() -> onnx.ModelProto:
    return onnx.load_from_string(zoo.sensor())


def bare() -> bytes:
    model = graph()
    del model.metadata_props[:]
    return bytes(model.SerializeToString())


class TestNoBundle:
    def test_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match=r"no bundle at .*nowhere\.onnx.*shipped name: .*digits"):
            load(tmp_path / "nowhere.onnx")

    def test_no_such_name(self) -> None:
        with pytest.raises(ManifestError, match=r"no bundle at 'letters'.*digits"):
            load("letters")

    @pytest.mark.parametrize("given", [3, None, b"digits"])
    def test_neither_a_name_nor_a_path(self, given: object) -> None:
        with pytest.raises(ManifestError, match=r"load was given (int|NoneType|bytes) .*expected a path .*digits"):
            load(given)  # type: ignore[arg-type]

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="no bundle at"):
            load(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"RIFF", bytes(1000), np.random.default_rng(0).bytes(5000)])
    def test_other_bytes(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other.onnx"
        path.write_bytes(content)
        with pytest.raises(ManifestError, match=r"other\.onnx: .*ONNX"):
            load(path)

    def test_a_model_without_a_manifest(self) -> None:
        refused(bare(), "no bundle", METADATA_KEY)

    def test_a_manifest_that_is_no_manifest(self) -> None:
        model = graph()
        helper.set_model_props(model, {METADATA_KEY: "{}"})
        refused(model.SerializeToString(), "manifest does not hold together", "labels")

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, len(DIGITS) - 1) | st.integers(len(DIGITS) - 3000, len(DIGITS) - 1))
    def test_a_truncated_bundle(self, length: int) -> None:
        refused(DIGITS[:length])


class TestNames:
    def test_shipped_by_name_and_by_path(self) -> None:
        for path in SHIPPED.glob("*.onnx"):
            assert load(path.stem).fingerprint == load(path).fingerprint == load(str(path)).fingerprint
        assert load("digits").size_bytes == len(DIGITS)

    def test_a_folder_of_that_name_does_not_hide_a_shipped_bundle(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "digits").mkdir()
        monkeypatch.chdir(tmp_path)
        assert load("digits").source == str(SHIPPED / "digits.onnx")

    def test_a_file_of_that_name_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "digits").write_bytes(zoo.sensor())
        monkeypatch.chdir(tmp_path)
        assert load("digits").manifest.task == "test sensor"


def test_the_fingerprint_changes_with_any_byte() -> None:
    model = zoo.sensor()
    seen = {from_bytes(model, "original").fingerprint}
    at = [model.index(word) for word in (b"test sensor", b"never", b"tests/zoo.py", b"Apache")]
    at.append(model.index(next(i.raw_data for i in graph().graph.initializer if i.name == "W")) + 2)  # one weight
    for place in at:
        other = bytearray(model)
        other[place] ^= 1
        seen.add(from_bytes(bytes(other), "changed").fingerprint)
    assert len(seen) == 1 + len(at)
    assert hashlib.sha256(model).digest().startswith(from_bytes(model, "again").fingerprint)


MISFITS: dict[str, tuple[dict[str, object], list[str]]] = {
    "input's name": ({"input": "frames"}, ["inputs are ['h', 'x']", "names ['frames', 'h']"]),
    "output's name": ({"output": "y"}, ["outputs are ['hn', 'scores']", "names ['hn', 'y']"]),
    "state's input": ({"state_input": "hidden"}, ["inputs are ['h', 'x']", "names ['hidden', 'x']"]),
    "state's output": ({"state_output": "hidden"}, ["outputs are ['hn', 'scores']", "names ['hidden', 'scores']"]),
    "state's width": ({"state_shape": (1, 1, 15)}, ["input 'h'", "16]", "15]"]),
    "state's rank": ({"state_shape": (1, 16), "state_batch_axis": 0}, ["input 'h'", "[1, 'B', 16]", "['B', 16]"]),
    "state's batch axis": ({"state_shape": (1, 16, 1), "state_batch_axis": 0}, ["input 'h'", "[1, 'B', 16]", "16, 1]"]),
    "state's type": ({"state_dtype": "float16"}, ["input 'h'", "tensor(float)", "float16"]),
    "features": ({"features": 7}, ["input 'x'", "'B', 'T', 6]", "7]"]),
    "classes": ({"classes": 4}, ["output 'scores'", "manifest says [2, 1, 4]", "graph gives [2, 1, 5]"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_a_manifest_that_does_not_fit_its_graph(case: str) -> None:
    changes, words = MISFITS[case]
    refused(sensor(**changes), *words)


def cast(model: onnx.ModelProto, output: str, element: int) -> bytes:
    """The graph with one output of another element type."""
    for node in model.graph.node:
        node.output[:] = [f"{name}_before" if name == output else name for name in node.output]
    model.graph.node.append(helper.make_node("Cast", [f"{output}_before"], [output], to=element))
    next(o for o in model.graph.output if o.name == output).type.tensor_type.elem_type = element
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("element", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64])
@pytest.mark.parametrize("output", ["scores", "hn"])
def test_outputs_of_another_type(output: str, element: int) -> None:
    """Cast silently into a row, or refused by onnxruntime at the second step: never found out at the first."""
    refused(cast(graph(), output, element), f"output {output!r}", "expected float32")


def free(model: onnx.ModelProto) -> onnx.ModelProto:
    """All declared sizes taken out of the graph, so that only running it can tell."""
    for value in [*model.graph.input, *model.graph.output]:
        for n, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{n}"
    return model


def test_a_graph_that_does_not_run() -> None:
    manifest = zoo.bundle("sensor").manifest
    spec = manifest.model.model_copy(update={"features": 7})
    wide = manifest.model_copy(update={"model": spec, "input": manifest.input.model_copy(update={"channels": 7})})
    refused(zoo.with_manifest(free(graph()), wide), "does not run on 2 streams of 1 frames of 7")


def test_a_graph_that_sums_up_the_frames_of_a_call() -> None:
    """For one block it is as declared. For more, a result would silently depend on the cuts."""
    names = {"x": ["B", "T", 4], "h": ["B", 1, 4], "y": ["B", "T", 4], "hn": ["B", 1, 4]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in names.items()]
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "h"], ["hn"]),
        helper.make_node("Identity", ["hn"], ["y"]),
    ]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    model = helper.make_model(
        helper.make_graph(nodes, "sum", values[:2], values[2:], [axis]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    manifest = zoo.bundle("sensor").manifest
    state = manifest.model.states[0].model_copy(
        update={"input": "h", "output": "hn", "shape": (1, 1, 4), "batch_axis": 0}
    )
    wanted = {"input": "x", "output": "y", "features": 4, "classes": 4, "block": 1, "states": (state,)}
    manifest = manifest.model_copy(
        update={
            "input": manifest.input.model_copy(update={"channels": 4}),
            "labels": tuple("abcd"),
            "model": manifest.model.model_copy(update=wanted),
        }
    )
    refused(zoo.with_manifest(model, manifest), "[2, 2, 4]", "[2, 1, 4]", "one_block")
    one_block = manifest.model.model_copy(update={"one_block": True})
    from_bytes(zoo.with_manifest(model, manifest.model_copy(update={"model": one_block})), "here.onnx")


def test_a_state_that_comes_back_in_another_shape() -> None:
    model = free(graph())
    for node in model.graph.node:
        node.output[:] = ["hn_before" if name == "hn" else name for name in node.output]
    model.graph.node.append(helper.make_node("Concat", ["hn_before", "hn_before"], ["hn"], axis=2))
    refused(model.SerializeToString(), "state 'h'", "manifest says [2, 1, 16]", "graph gives [2, 1, 32]")


def external(location: str) -> bytes:
    model = graph()
    weights = next(i for i in model.graph.initializer if i.name == "W")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "location", ["weights.bin", "./weights.bin", "../weights.bin", "below/weights.bin", "absolute"]
)
def test_weights_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    """A bundle is one file: what the fingerprint does not cover is not loaded, from wherever a worker runs."""
    weights = numpy_helper.to_array(next(i for i in graph().graph.initializer if i.name == "W")).tobytes()
    here = tmp_path / "here"
    (here / "below").mkdir(parents=True)
    for folder in (tmp_path, here, here / "below"):
        (folder / "weights.bin").write_bytes(weights)
    monkeypatch.chdir(here)
    model = external(str(here / "weights.bin") if location == "absolute" else location)
    refused(model, "data lies outside", "one file")
    (here / "bundle.onnx").write_bytes(model)
    with pytest.raises(ManifestError, match="data lies outside"):
        load(here / "bundle.onnx")


def test_an_operator_of_a_domain_of_its_own() -> None:
    model = graph()
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    refused(model.SerializeToString(), "domain 'com.example'", "standard operators")


# --- forward, against a composition that shares no code with it ------------------------------------------------------


@dataclass
class Whole:
    """Run a bundle's graph with onnxruntime alone, over numpy's own frames, and decide as the head's prose says."""

    model: bytes
    manifest: Manifest

    def frames(self, samples: NDArray[Any]) -> NDArray[np.float32]:
        signal = samples.astype(np.float64) / (32768 if samples.dtype == np.int16 else 1)
        frontend = self.manifest.frontend
        unit = self.manifest.hop_samples * self.manifest.model.block
        # Audio out: behind the signal's end, so much silence that its last samples are in as many windows as any.
        tail = frontend.window_samples - frontend.hop_samples if self.manifest.head.kind == "overlap_add" else 0
        signal = np.concatenate([signal, np.zeros((tail + -(len(signal) + tail) % unit, signal.shape[1]))])
        if frontend.kind == "identity":
            return signal.astype(np.float32)
        if len(signal) == 0:
            return np.empty((0, self.manifest.model.features), np.float32)
        window, hop = frontend.window_samples, frontend.hop_samples
        padded = np.concatenate([np.zeros((window - hop, signal.shape[1])), signal])
        if frontend.kind == "window":
            parts = [padded[t * hop : t * hop + window].reshape(-1) for t in range(len(signal) // hop)]
            return np.array(parts, np.float32)
        padded = padded[:, 0]
        hann = np.sin(np.pi * np.arange(window) / window) ** 2
        parts = [padded[t * hop : t * hop + window] * hann for t in range(len(signal) // hop)]
        return np.array([np.abs(np.fft.rfft(part)) ** 2 for part in parts], np.float32)

    def scores(self, samples: NDArray[Any]) -> NDArray[np.float32]:
        spec = self.manifest.model
        frames = self.frames(samples)
        tail = spec.tail_frames + spec.latency
        silence = np.zeros((-(-tail // spec.block) * spec.block, frames.shape[1]), np.float32)
        x = np.concatenate([frames, silence])[None]
        if x.shape[1] == 0:  # onnxruntime's LSTM aborts the process
            return np.empty((0, spec.classes), np.float32)
        feeds = {s.input: np.full(s.shape, s.initial, s.dtype) for s in spec.states}
        feeds |= {g.input: np.full(g.shape, g.initial, np.float32) for g in spec.given}
        runtime = onnxruntime.InferenceSession(self.model)
        if spec.blocks_a_call == 1:
            found = self.one_by_one(runtime, x[0], feeds)
        else:
            found = np.asarray(runtime.run([spec.output], {spec.input: x, **feeds})[0])[0]
        return found[spec.latency : len(frames) + tail]

    def one_by_one(self, runtime: onnxruntime.InferenceSession, x: NDArray[Any], feeds: dict[str, Any]) -> NDArray[Any]:
        """A block `[block, F]` a call, in the graph's own axes."""
        spec, found = self.manifest.model, []
        for start in range(0, len(x), spec.block):
            sizes = {"B": 1, "T": spec.block, "F": spec.features, "1": 1}
            feeds[spec.input] = x[start : start + spec.block].reshape([sizes[axis] for axis in spec.input_axes])
            scores, *carried = runtime.run([spec.output, *(s.output for s in spec.states)], feeds)
            feeds |= {s.input: state for s, state in zip(spec.states, carried, strict=True)}
            found.append(np.asarray(scores).reshape(spec.block, -1))
        return np.concatenate(found)


BYTES: Mapping[str, Callable[[], bytes]] = zoo.ZOO


@pytest.mark.parametrize("blocks", [0, 1, 37.5, 200])
@pytest.mark.parametrize("name", BYTES)
def test_forward_equals_a_composition_of_numpy_and_onnxruntime(name: str, blocks: float) -> None:
    bundle = zoo.bundle(name)
    unit = bundle.frontend.block * bundle.model.block
    samples = zoo.signal(bundle.manifest.input, int(blocks * unit), seed=3)
    scores = bundle.forward(samples).scores
    expected = Whole(BYTES[name](), bundle.manifest).scores(samples)
    assert scores.shape == expected.shape
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=2e-5)


def test_forward_takes_mono_as_a_vector_and_both_sample_types() -> None:
    bundle = zoo.bundle("audio")
    samples = zoo.signal(bundle.manifest.input, 4000, seed=1)
    expected = bundle.forward(samples)
    for same in (samples[:, 0], samples.astype(np.float32) / 32768):
        events, scores, _ = bundle.forward(same)
        assert scores.tobytes() == expected[1].tobytes()
        assert [column.tolist() for column in events] == [column.tolist() for column in expected[0]]
