"""Short convolutions as matrix products: the same bytes, for any of them and any number of streams."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pipeline.adopt import products, quicker
from pipeline.adopt.build import Adopted, adopt
from pipeline.adopt.products import Products
from pipeline.manifest import METADATA_KEY
from pipeline.manifest.model import ModelSpec, StateSpec

FLOAT = TensorProto.FLOAT


def ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def convolutions(layers: list[dict[str, int]], seed: int, *, branch: bool = False) -> bytes:
    """`x` `[B, 1, N]`, one channel, through convolutions and Relus to `[B, 1, n]`, and a state that counts calls.

    branch: the convolutions stand in a branch of an If, their weights around it.
    """
    rng = np.random.default_rng(seed)
    nodes, init, y, channels = [], [], "x", 1
    for n, layer in enumerate(layers):
        weight = rng.standard_normal((layer["outputs"], channels, layer["taps"])).astype(np.float32) * 0.3
        init += [numpy_helper.from_array(weight, f"W{n}")]
        names = [y, f"W{n}"]
        if layer["bias"]:
            init += [numpy_helper.from_array(rng.standard_normal(layer["outputs"]).astype(np.float32), f"b{n}")]
            names += [f"b{n}"]
        nodes += [
            helper.make_node(
                "Conv", names, [f"c{n}"], strides=[layer["stride"]], dilations=[layer["dilation"]],
                pads=[layer["first"], layer["last"]],
            ),
            helper.make_node("Relu", [f"c{n}"], [f"r{n}"]),
        ]  # fmt: skip
        y, channels = f"r{n}", layer["outputs"]
    init += [ints("flat", 0, 1, -1), numpy_helper.from_array(np.array(True), "yes")]
    if branch:
        inner = helper.make_graph(nodes, "then", [], [helper.make_tensor_value_info(y, FLOAT, None)])
        same = helper.make_tensor_value_info("same", FLOAT, None)
        other = helper.make_graph([helper.make_node("Identity", ["x"], ["same"])], "else", [], [same])
        nodes = [helper.make_node("If", ["yes"], ["chosen"], then_branch=inner, else_branch=other)]
        y = "chosen"
    nodes += [helper.make_node("Reshape", [y, "flat"], ["y"]), helper.make_node("Add", ["h", "h"], ["hn"])]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", FLOAT, ["B", 1, "n"]), helper.make_tensor_value_info("h", FLOAT, ["B", 2])],
        [helper.make_tensor_value_info("y", FLOAT, None), helper.make_tensor_value_info("hn", FLOAT, ["B", 2])],
        init,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def spec_of(length: int, classes: int) -> ModelSpec:
    return ModelSpec(
        input="x", input_axes="BTF", output="y", output_axes="BTC", features=length, classes=classes, one_block=True,
        states=(StateSpec(input="h", output="hn", shape=(1, 2), batch_axis=0),),
    )  # fmt: skip


def torch_convolutions(x: np.ndarray, layers: list[dict[str, int]], seed: int) -> np.ndarray:
    """The same by torch, in 64 bits: `[B, C, n]`."""
    rng, y, channels = np.random.default_rng(seed), torch.from_numpy(x).double(), 1
    for layer in layers:
        weight = rng.standard_normal((layer["outputs"], channels, layer["taps"])).astype(np.float32) * 0.3
        bias = rng.standard_normal(layer["outputs"]).astype(np.float32) if layer["bias"] else None
        y = torch.nn.functional.pad(y, (layer["first"], layer["last"]))
        y = torch.nn.functional.conv1d(
            y, torch.from_numpy(weight).double(), None if bias is None else torch.from_numpy(bias).double(),
            stride=layer["stride"], dilation=layer["dilation"],
        ).relu()  # fmt: skip
        channels = layer["outputs"]
    return y.numpy()


def frames_of(layers: list[dict[str, int]], length: int) -> list[int]:
    """Output frames of each layer; 0 or less: its window does not fit."""
    found = []
    for layer in layers:
        reach = (layer["taps"] - 1) * layer["dilation"] + 1
        length = (length + layer["first"] + layer["last"] - reach) // layer["stride"] + 1
        found.append(length)
        if length < 1:
            break
    return found


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    runtime = ort.InferenceSession(model, options, disabled_optimizers=["ConstantFolding"])
    return np.asarray(runtime.run(["y"], {"x": x, "h": np.zeros((len(x), 2), np.float32)})[0])


LAYER = st.fixed_dictionaries(
    {
        "outputs": st.sampled_from([1, 5, 16, 31, 32, 33, 64, 130]),
        "taps": st.sampled_from([1, 2, 3, 4, 5, 8, 9, 12]),
        "stride": st.integers(1, 3),
        "dilation": st.integers(1, 2),
        "first": st.integers(0, 3),
        "last": st.integers(0, 3),
        "bias": st.integers(0, 1),
    }
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LAYER, min_size=1, max_size=3), st.integers(3, 24), st.booleans(), st.integers(0, 2**20))
def test_any_convolution_keeps_its_bytes(layers: list[dict[str, int]], length: int, branch: bool, seed: int) -> None:
    frames = frames_of(layers, length)
    if frames[-1] < 1:
        return
    model = convolutions(layers, seed, branch=branch)
    found = Products(model, spec_of(length, frames[-1] * layers[-1]["outputs"]))
    channels = [1, *(layer["outputs"] for layer in layers)]
    worth_it = [
        2 <= n < 16 and layer["outputs"] >= 16 and before * layer["taps"] <= 1024
        for n, before, layer in zip(frames, channels, layers, strict=False)
    ]
    assert sum(found.counts.values()) == sum(worth_it)
    quick = found.write(found.counts)
    kinds = [node.op_type for node in onnx.load_model_from_string(quick).graph.node]
    assert branch or kinds.count("Conv") == len(layers) - sum(worth_it)
    for streams in (1, 2, 5, 33):
        x = np.random.default_rng(seed).standard_normal((streams, 1, length)).astype(np.float32)
        got = run(quick, x)
        note(f"{streams} streams, {frames} frames")
        assert got.tobytes() == run(model, x).tobytes()
        wanted = torch_convolutions(x, layers, seed).reshape(streams, 1, -1)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))


VAD_LIKE = [
    {"outputs": 258, "taps": 256, "stride": 128, "dilation": 1, "first": 0, "last": 0, "bias": 0},
    {"outputs": 128, "taps": 3, "stride": 1, "dilation": 1, "first": 1, "last": 1, "bias": 1},
    {"outputs": 64, "taps": 3, "stride": 2, "dilation": 1, "first": 1, "last": 1, "bias": 1},
    {"outputs": 64, "taps": 3, "stride": 2, "dilation": 1, "first": 1, "last": 1, "bias": 1},
]
"""A spectrum and three layers; a frame of the last is one frame, which is no product."""


@pytest.fixture(autouse=True)
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """How long products are found to take, of the convolutions' time (half, unless said): no test hangs on a clock."""

    def say(ratio: float) -> None:
        monkeypatch.setattr(quicker, "_ratio", lambda *_: ratio)

    say(0.5)
    return say


def adopted(layers: list[dict[str, int]] = VAD_LIKE, length: int = 640) -> Adopted:
    wishes = {
        "input": {"sample_rate_hz": 16000},
        "frontend": {"kind": "window", "window_samples": length, "hop_samples": length},
        "model": {"one_block": True},
    }
    return adopt(convolutions(layers, 3), "vad.onnx", wishes)


def kinds_of(done: Adopted) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(done.model).graph.node]


def told(done: Adopted) -> tuple[str, str] | None:
    """What adoption says of convolutions."""
    return next((line[1:] for line in done.lines if line[0] == "convolutions"), None)


def test_adopting_makes_the_short_convolutions_products_and_says_so() -> None:
    done = adopted()
    assert kinds_of(done).count("Conv") == 1
    assert kinds_of(done).count("MatMul") == 3
    found = told(done)
    assert found is not None
    assert found[0] == "as products of matrices"
    assert found[1] == "3 of them, the same bytes; 16 streams take 0.50 of the time"
    assert METADATA_KEY in [entry.key for entry in onnx.load_model_from_string(done.model).metadata_props]
    x = np.random.default_rng(1).standard_normal((7, 1, 640)).astype(np.float32)
    scores, _ = done.bundle.model.step(x, done.bundle.model.initial_state(7))
    assert scores.tobytes() == run(convolutions(VAD_LIKE, 3), x).tobytes()


OTHERWISE = "as products of matrices they do not run, or yield other bytes"


def test_a_product_that_gives_other_bytes_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_PACKED_TERMS", 1024)  # sums of 387 terms are then cut after 256
    done = adopted()
    assert kinds_of(done).count("Conv") == 4
    assert told(done) == ("as they are", OTHERWISE)


def test_a_product_that_is_slower_is_not_taken(takes: Callable[[float], None]) -> None:
    takes(1.6)
    done = adopted()
    assert kinds_of(done).count("Conv") == 4
    assert told(done) == ("as they are", "as products of matrices they take 1.6 times as long")


def test_what_a_branch_would_do_that_is_never_taken_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are those of the graph as it was, for it does not act: nothing is known of it, so it stays."""
    monkeypatch.setattr(products, "_PACKED_TERMS", 1024)
    model = onnx.load_model_from_string(convolutions(VAD_LIKE, 3, branch=True))
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "yes"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(np.array(1e30, np.float32), "never")])
    model.graph.node.insert(0, helper.make_node("Greater", ["most", "never"], ["yes"]))
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["h"], ["most"], keepdims=0))
    wishes = {"input": {"sample_rate_hz": 16000}, "model": {"one_block": True, "features": 640}}
    done = adopt(model.SerializeToString(), "branch.onnx", wishes)
    assert told(done) == ("as they are", OTHERWISE)
    assert b"MatMul" not in done.model


def test_a_model_that_only_its_own_frames_run_on_is_adopted_as_it_is() -> None:
    """Noise is no table of five rows: the comparison fails, the adoption does not."""
    model = onnx.load_model_from_string(convolutions(VAD_LIKE, 3))
    table = np.random.default_rng(1).standard_normal(5).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    for node in model.graph.node:
        node.input[:] = ["looked_up" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Gather", ["table", "number"], ["looked_up"]))
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["number"], to=TensorProto.INT64))
    wishes = {"input": {"sample_rate_hz": 16000}, "model": {"one_block": True, "features": 640}}
    done = adopt(model.SerializeToString(), "table.onnx", wishes)
    found = told(done)
    assert found is not None
    assert found[0] == "as they are"
    assert "fails: " in found[1]


def test_without_the_onnx_package_a_model_is_adopted_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = adopted()
    monkeypatch.undo()
    assert kinds_of(done).count("Conv") == 4
    assert told(done) == ("as they are", "pip install 'statebelt[adopt]' may make them quicker")


def test_what_is_no_short_convolution_stays() -> None:
    """One frame, sixteen frames, few channels, a sum of more than 1,024 terms, padding by name: each as it was."""
    short = {"taps": 3, "stride": 1, "dilation": 1, "first": 0, "last": 0, "bias": 0, "outputs": 16}
    assert Products(convolutions([short], 1), spec_of(6, 64)).counts == {0: 1}
    for layers, length in (
        ([short], 3),
        ([short], 18),
        ([{**short, "outputs": 8}], 6),
        ([{**short, "taps": 1, "outputs": 205}, {**short, "taps": 5}], 6),
    ):
        counts = Products(convolutions(layers, 1), spec_of(length, 16)).counts
        assert sum(counts.values()) == len(layers) - 1
    model = onnx.load_model_from_string(convolutions([short], 1))
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
    assert not Products(model.SerializeToString(), spec_of(6, 96)).counts
    old = onnx.load_model_from_string(convolutions([short], 1))
    old.opset_import[0].version = 9
    assert not Products(old.SerializeToString(), spec_of(6, 64)).counts
    fed = onnx.load_model_from_string(convolutions([short], 1))
    fed.graph.input.append(helper.make_tensor_value_info("W0", FLOAT, [16, 1, 3]))
    assert not Products(fed.SerializeToString(), spec_of(6, 64)).counts
