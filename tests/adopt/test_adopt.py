"""`statebelt adopt`: what a graph tells of itself, in whatever order of axes it was exported; and what it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pipeline.adopt.build import adopt, with_metadata
from pipeline.adopt.names import stems
from pipeline.adopt.recipe import merged, read_recipe, shipped
from pipeline.bundle import MAX_BUNDLE_BYTES, load
from pipeline.errors import ConfigError, ManifestError
from pipeline.manifest import IdentityFrontend, Manifest, PowerFrontend
from pipeline.offline import run
from pipeline.producer import Producer
from tests import zoo
from tests.unit.test_cli import statebelt

FLOAT = TensorProto.FLOAT
F, H, C = 6, 8, 3


def gru(
    axes: str = "BTF",
    out: str = "BTC",
    state: str = "h",
    after: str = "hn",
    batch: int | str = "B",
    time: int | str = "T",
    rate_input: bool = False,
) -> bytes:
    """A GRU of 6 features and 3 classes whose signal and scores have these axes, and whose state is [1, B, H]."""
    rng = np.random.default_rng(0)
    sizes: dict[str, int | str] = {"B": batch, "T": time, "F": F, "C": C, "1": 1}
    order = {axis: n for n, axis in enumerate(axis for axis in axes if axis != "1")}
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    init = [
        zoo._weights(rng, "W", 1, 3 * H, F),
        zoo._weights(rng, "R", 1, 3 * H, H),
        zoo._weights(rng, "bias", 1, 6 * H),
    ]
    init += [zoo._weights(rng, "V", H, C), one]
    nodes, x = [], "x"
    for n, axis in reversed(list(enumerate(axes))):
        if axis == "1":
            init.append(numpy_helper.from_array(np.array([n], np.int64), f"at_{n}"))
            nodes.append(helper.make_node("Squeeze", [x, f"at_{n}"], [f"{x}s"]))
            x += "s"
    for missing in [axis for axis in "BT" if axis not in axes]:
        init.append(numpy_helper.from_array(np.array([len(order)], np.int64), f"behind_{missing}"))
        nodes.append(helper.make_node("Unsqueeze", [x, f"behind_{missing}"], [f"{x}u"]))
        order[missing] = len(order)
        x += "u"
    wanted = [order["T"], order["B"], order["F"]]
    nodes += [
        helper.make_node("Transpose", [x], ["time_first"], perm=wanted),
        helper.make_node(
            "GRU", ["time_first", "W", "R", "bias", "", state], ["Y", after], hidden_size=H, linear_before_reset=1
        ),
        helper.make_node("Squeeze", ["Y", "one"], ["y"]),  # [T, B, H]
        helper.make_node("MatMul", ["y", "V"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    y, now = "probabilities", ["T", "B", "C"]
    for missing in [axis for axis in "BT" if axis not in out]:
        init.append(numpy_helper.from_array(np.array([now.index(missing)], np.int64), f"gone_{missing}"))
        nodes.append(helper.make_node("Squeeze", [y, f"gone_{missing}"], [f"{y}g"]))
        now.remove(missing)
        y += "g"
    letters = [axis for axis in out if axis != "1"]
    nodes.append(helper.make_node("Transpose", [y], ["scores"], perm=[now.index(axis) for axis in letters]))
    inputs = [helper.make_tensor_value_info("x", FLOAT, [sizes[axis] for axis in axes])]
    inputs.append(helper.make_tensor_value_info(state, FLOAT, [1, batch if "B" in axes else 1, H]))
    if rate_input:
        inputs.append(helper.make_tensor_value_info("sr", TensorProto.INT64, []))
    outputs = [
        helper.make_tensor_value_info("scores", FLOAT, [None] * len(letters)),
        helper.make_tensor_value_info(after, FLOAT, [1, None, H]),
    ]
    graph = helper.make_graph(nodes, "gru", inputs, outputs, init)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


WISHES = {"input": {"sample_rate_hz": 50}}
SIGNAL = np.random.default_rng(1).standard_normal((40, F)).astype(np.float32)


def expected() -> bytes:
    return run(adopt(gru(), "plain", WISHES).bundle, SIGNAL).scores.tobytes()


def test_the_oracle_is_arithmetic() -> None:
    """The plain layout, against torch's GRU with the same weights."""
    torch = pytest.importorskip("torch")
    model = onnx.load_from_string(gru())
    w, r, bias, v = (numpy_helper.to_array(t).copy() for t in model.graph.initializer[:4])
    theirs = torch.nn.GRU(F, H, batch_first=True)
    order = np.r_[H : 2 * H, 0:H, 2 * H : 3 * H]  # ONNX has z, r, n; torch r, z, n
    with torch.no_grad():
        theirs.weight_ih_l0[:] = torch.from_numpy(w[0][order])
        theirs.weight_hh_l0[:] = torch.from_numpy(r[0][order])
        theirs.bias_ih_l0[:] = torch.from_numpy(bias[0][: 3 * H][order])
        theirs.bias_hh_l0[:] = torch.from_numpy(bias[0][3 * H :][order])
        scores = torch.sigmoid(theirs(torch.from_numpy(SIGNAL[None]))[0] @ torch.from_numpy(v))
    ours = run(adopt(gru(), "plain", WISHES).bundle, SIGNAL, chunk_samples=7).scores
    np.testing.assert_allclose(ours, scores[0].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("axes", "out", "batch", "time"),
    [
        ("BTF", "BTC", "B", "T"),
        ("BFT", "BCT", "B", "T"),
        ("BFT", "BTC", "batch", "time"),
        ("B1TF", "BTC", "B", "T"),
        ("BTF1", "BCT", "B", "T"),
        ("TBF", "TBC", "B", "T"),
        ("BF", "BC", "B", 1),
        ("TF", "TC", 1, "T"),
        ("BTF", "BTC", 1, "T"),
        ("BTF", "BTC", "B", 1),
        ("BTF", "BTC", 1, 1),
        ("BTF", "BTC", "B", 4),
        ("BFT", "BTC", 1, 4),
    ],
)
def test_any_order_of_axes_says_the_same(axes: str, out: str, batch: int | str, time: int | str) -> None:
    """Inferred from the graph alone; where it takes less at a time, it takes more calls."""
    done = adopt(gru(axes, out, batch=batch, time=time), "graph", {**WISHES, "model": {"input_axes": axes}})
    assert run(done.bundle, SIGNAL).scores.tobytes() == expected()
    assert run(done.bundle, SIGNAL, chunk_samples=3).scores.tobytes() == expected()
    guessed = adopt(gru(axes, out, batch=batch, time=time), "graph", WISHES) if axes != "BFT" or time != 4 else done
    assert guessed.bundle.manifest.model == done.bundle.manifest.model


@pytest.mark.parametrize(
    ("state", "after"),
    [
        ("h", "hn"), ("h0", "hN"), ("h", "h_out"), ("state", "stateN"), ("state", "new_state"), ("h_in", "h_out"),
        ("cache_0", "next_cache_0"), ("recurrent", "next_recurrent"), ("lstm.h", "lstm.h_next"),
        ("past_h", "present_h"),
        ("prev_state", "state"), ("memory", "memory_output"), ("input_3", "something_else_entirely"),
    ],
)  # fmt: skip
def test_states_are_found_by_name_or_by_shape(state: str, after: str) -> None:
    done = adopt(gru(state=state, after=after), "graph", WISHES)
    assert [(s.input, s.output) for s in done.bundle.manifest.model.states] == [(state, after)]
    assert done.bundle.manifest.model.output == "scores"


@given(
    stem=st.from_regex(r"[a-z]{2,8}(_[0-9])?", fullmatch=True),
    before=st.sampled_from(["next_", "new_", "out_", "updated_", "present_", ""]),
    behind=st.sampled_from(["_out", "_next", "_new", "_output", ""]),
)
def test_a_stem_is_found_in_what_it_becomes(stem: str, before: str, behind: str) -> None:
    assert stem in stems(before + stem + behind)


@settings(max_examples=20, deadline=None)
@given(key=st.text(min_size=1, max_size=40), value=st.text(max_size=400))
def test_metadata_is_added_and_nothing_else_changes(key: str, value: str) -> None:
    """Against protobuf itself."""
    before = onnx.load_from_string(gru())
    after = onnx.load_from_string(with_metadata(gru(), key, value))
    assert {p.key: p.value for p in after.metadata_props} == {key: value}
    del after.metadata_props[:]
    assert after == before


def test_a_constant_is_asked_for_or_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(gru(rate_input=True))
    statebelt("adopt", path, "-o", tmp_path / "b.onnx", "--rate", 50)
    (constant,) = load(tmp_path / "b.onnx").manifest.model.constants
    assert (constant.input, constant.value, constant.dtype) == ("sr", 50.0, "int64")
    statebelt("adopt", path, "-o", tmp_path / "b.onnx", "--rate", 50, "--constant", "sr=8000")
    assert load(tmp_path / "b.onnx").manifest.model.constants[0].value == 8000
    _, err = statebelt("adopt", path, "-o", tmp_path / "b.onnx", "--rate", 50, "--constant", "sr=fast", code=2)
    assert "'fast' is no number" in err


def test_what_is_printed_and_what_is_written(tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "b.onnx"
    path.write_bytes(gru())
    before = path.read_bytes()
    out, _ = statebelt("adopt", path, "-o", output, "--rate", 50, "--labels", "a,b,c", "--licence", "MIT")
    assert "by name" in out
    assert "statebelt verify" in out
    assert path.read_bytes() == before
    out, _ = statebelt("inspect", output, "--json")
    manifest = json.loads(out)["manifest"]
    assert manifest["labels"] == ["a", "b", "c"]
    expected = {"sample_rate_hz": 50.0, "channels": F, "sample_type": "float32", "any_rate": False}
    assert manifest["input"] == expected
    out, _ = statebelt("adopt", path, "-o", output, "--rate", 50, "--json")
    assert {line["what"] for line in json.loads(out)["findings"]} >= {"state", "axes", "scores a frame"}
    _, err = statebelt("adopt", path, "-o", path, "--rate", 50, code=2)
    assert "stays as it is" in err
    _, err = statebelt("adopt", output, "-o", tmp_path / "c.onnx", "--rate", 50, code=2)
    assert "a bundle already" in err


def test_raw_audio_in_windows(tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "b.onnx"
    path.write_bytes(gru())
    statebelt("adopt", path, "-o", output, "--rate", 8000, "--window", F, "--hop", 2)
    bundle = load(output)
    assert bundle.manifest.frontend.model_dump() == {"kind": "window", "window_samples": F, "hop_samples": 2}
    assert bundle.manifest.input.sample_type == "int16"
    samples = np.random.default_rng(0).integers(-9999, 9999, 50).astype(np.int16)
    padded = np.concatenate([np.zeros(F - 2), samples / 32768]).astype(np.float32)
    frames = np.stack([padded[t : t + F] for t in range(0, 50, 2)])
    assert run(bundle, samples).scores.tobytes() == run(adopt(gru(), "plain", WISHES).bundle, frames).scores.tobytes()
    statebelt("adopt", path, "-o", output, "--rate", 8000, "--window", 2 * F - 2, "--hop", 4, "--power")
    assert load(output).manifest.frontend == PowerFrontend(window_samples=10, hop_samples=4)


@pytest.mark.parametrize(
    ("flags", "kind", "window", "hop"),
    [
        ((), "window", F, 2),
        (("--hop", 3), "window", F, 3),
        (("--window", F), "window", F, 2),
        (("--window", 10, "--power"), "power", 10, 2),
    ],
)
def test_flags_change_what_they_name_of_a_recipe(
    tmp_path: Path, flags: tuple[object, ...], kind: str, window: int, hop: int
) -> None:
    path, output, recipe = tmp_path / "m.onnx", tmp_path / "b.onnx", tmp_path / "r.toml"
    path.write_bytes(gru())
    recipe.write_text(
        f'[input]\nsample_rate_hz = 8000\n[frontend]\nkind = "window"\nwindow_samples = {F}\nhop_samples = 2\n'
    )
    statebelt("adopt", path, "-o", output, "--recipe", recipe, *flags)
    frontend = load(output).manifest.frontend
    assert frontend.model_dump() == {"kind": kind, "window_samples": window, "hop_samples": hop}


def test_power_alone_is_not_passed_over(tmp_path: Path) -> None:
    """Of a recipe's window, too."""
    path, output, recipe = tmp_path / "m.onnx", tmp_path / "b.onnx", tmp_path / "r.toml"
    path.write_bytes(gru())
    recipe.write_text(
        '[input]\nsample_rate_hz = 8000\n[frontend]\nkind = "window"\nwindow_samples = 10\nhop_samples = 4\n'
    )
    statebelt("adopt", path, "-o", output, "--recipe", recipe, "--power")
    assert load(output).manifest.frontend == PowerFrontend(window_samples=10, hop_samples=4)


def test_a_call_for_each_stream_and_block(tmp_path: Path) -> None:
    """What makes a model exact that is not over batches or cuts."""
    path, output = tmp_path / "m.onnx", tmp_path / "b.onnx"
    path.write_bytes(gru())
    statebelt("adopt", path, "-o", output, "--rate", 50, "--one-stream", "--one-block")
    bundle = load(output)
    assert (bundle.manifest.model.streams_a_call, bundle.manifest.model.blocks_a_call) == (1, 1)
    assert run(bundle, SIGNAL).scores.tobytes() == expected()


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path, recipe = tmp_path / "m.onnx", tmp_path / "mine.toml"
    path.write_bytes(gru())
    recipe.write_text('task = "mine"\n[input]\nsample_rate_hz = 25\n[head]\nkind = "segments"\ncolumn = 2\n')
    statebelt("adopt", path, "-o", tmp_path / "b.onnx", "--recipe", recipe, "--rate", 25, "--licence", "MIT")
    manifest = load(tmp_path / "b.onnx").manifest
    assert (manifest.task, manifest.input.sample_rate_hz, manifest.head.kind) == ("mine", 25.0, "segments")
    assert isinstance(manifest.frontend, IdentityFrontend)


@pytest.mark.parametrize(("recipe", "rate"), [("silero-vad", "16000"), ("dtln", "16000"), ("mine.toml", "25")])
def test_a_rate_that_is_not_the_recipes(tmp_path: Path, recipe: str, rate: str) -> None:
    """Its constants and windows are of its own rate: the bundle would run, and hear something else."""
    (tmp_path / "m.onnx").write_bytes(gru())
    (tmp_path / "mine.toml").write_text("[input]\nsample_rate_hz = 25\n")
    known = tmp_path / recipe if recipe.endswith(".toml") else recipe
    adopted = ("adopt", tmp_path / "m.onnx", "-o", tmp_path / "b.onnx", "--recipe", known)
    _, err = statebelt(*adopted, "--rate", 8000, code=2)
    assert f"--rate 8000: recipe '{known}' is for {rate} Hz" in " ".join(err.split())
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_hold_together(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe["source"]["files"]
    assert recipe["licence"]
    for section in ("input", "frontend", "head"):
        if section in recipe:
            fields = Manifest.model_fields[section]
            assert fields is not None
    assert merged(recipe, {}) == recipe


def broken(name: str) -> bytes:
    """Models that cannot be bundles."""
    if name == "no state":
        graph = onnx.load_from_string(gru()).graph
        nodes = [n for n in graph.node if n.op_type != "GRU"]
        assert len(nodes) < len(graph.node)
        x = helper.make_tensor_value_info("x", FLOAT, ["B", "T", F])
        y = helper.make_tensor_value_info("scores", FLOAT, ["B", "T", F])
        graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["scores"])], "g", [x], [y])
        return bytes(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
        )
    model = onnx.load_from_string(gru())
    if name == "unknown operator":
        model.graph.node[-1].op_type = "Frobnicate"
    elif name == "unknown domain":
        model.graph.node[-1].domain = "my.own"
        model.opset_import.append(helper.make_opsetid("my.own", 1))
    elif name == "state that grows":
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 2, 1), np.float32), "more"))
        model.graph.node.append(helper.make_node("Concat", ["hn", "hn"], ["grown"], axis=2))
        model.graph.output[1].name = "grown"
        model.graph.output[1].type.tensor_type.shape.dim[2].dim_value = 2 * H
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("no state", (), "no state: none of its inputs (x float32 [B, T, 6]) comes back among its outputs"),
        ("state that grows", (), "no state: none of its inputs"),
        ("state that grows", ("--state", "h=grown"), "state h float32 [1, B, 8] and grown float32 [1, B, 16] differ"),
        ("unknown operator", (), "onnxruntime cannot load this file"),
        ("unknown domain", (), "an operator of the domain 'my.own'"),
        ("fine", ("--state", "h=nobody"), "no output 'nobody' in the graph; it has"),
        ("fine", ("--axes", "BT"), "axes"),
        ("fine", ("--axes", "XYZ"), "the axes 'XYZ' of input x float32 [B, T, 6]: expected a letter for each, of B"),
        ("fine", ("--axes", "BTT"), "the axes 'BTT' of input"),
        ("fine", ("--axes", "B1T"), "the axes 'B1T' of input"),
        ("fine", ("--head", "thoughts"), "head"),
        ("fine", ("--labels", "a,b"), "2 labels for a model of 3 classes"),
        ("fine", ("--head", "overlap_add"), "overlap_add takes a window frontend"),
        ("fine", ("--hop", "3"), "need --window"),
        ("fine", ("--recipe", "nobody"), "no recipe 'nobody'"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, name: str, flags: tuple[str, ...], words: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(broken(name))
    _, err = statebelt("adopt", path, "-o", tmp_path / "b.onnx", "--rate", 50, *flags, code=2)
    assert words in " ".join(err.split())
    assert not (tmp_path / "b.onnx").exists()


def test_the_rate_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(gru())
    _, err = statebelt("adopt", path, "-o", tmp_path / "b.onnx", code=2)
    assert "--rate HZ" in err
    _, err = statebelt("adopt", "-o", tmp_path / "b.onnx", code=2)
    assert "no model: give the .onnx file" in err
    _, err = statebelt("adopt", tmp_path / "absent.onnx", "-o", tmp_path / "b.onnx", code=2)
    assert "no model at" in err
    assert "shipped name" not in err


@pytest.mark.no_cover  # traced, the walk through it takes ten times as long
@pytest.mark.parametrize("size", [500_000_000, MAX_BUNDLE_BYTES + 1])
def test_a_file_of_500_mb(tmp_path: Path, size: int) -> None:
    """A hole of that size is no model; beyond the bound it is not even read."""
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(size)
    _, err = statebelt("adopt", path, "-o", tmp_path / "b.onnx", "--rate", 50, code=2)
    assert ("a bundle has at most" if size > MAX_BUNDLE_BYTES else "refused: more than") in " ".join(err.split())


@pytest.mark.slow
def test_a_model_of_500_mb(tmp_path: Path) -> None:
    """Adopted, and said what it costs."""
    model = onnx.load_from_string(gru())
    rng = np.random.default_rng(0)
    for name, shape in (("first", (C, 11_000)), ("second", (11_000, 11_400))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    model.graph.node.append(helper.make_node("MatMul", ["scores", "first"], ["wide"]))
    model.graph.node.append(helper.make_node("MatMul", ["wide", "second"], ["wider"]))
    model.graph.node.append(helper.make_node("ReduceMax", ["wider"], ["loudest"], axes=[2], keepdims=1))
    model.graph.output[0].name = "loudest"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    _, err = statebelt("adopt", path, "-o", tmp_path / "b.onnx", "--rate", 50)
    assert "MB: every worker process holds them" in " ".join(err.split())


def test_a_recipe_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for text, words in (
        ("x = [", "cannot be read"),
        ("[models]\n", "no part of a recipe"),
        ("input = 16000\n", r"input: expected a table: \[input\]"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_recipe(path)


def test_a_manifest_that_does_not_hold_together_says_why() -> None:
    with pytest.raises(ManifestError, match="sample_rate_hz"):
        adopt(gru(), "graph", {"input": {"sample_rate_hz": -1}})


def test_who_forgets_what_a_stream_is_given_is_told_of_the_call_that_there_is() -> None:
    model = onnx.load_from_string(zoo.given())
    del model.metadata_props[:]
    done = adopt(model.SerializeToString(), "given.onnx", {"input": {"sample_rate_hz": 100}})
    (warning,) = done.warnings
    assert "Producer.give)" in warning
    assert callable(Producer.give)
