"""Bundles that mean harm: refused before onnxruntime sees them, or within bounds where only running tells.

Each test that a file could win by taking all memory or all time runs in a process of its own, under limits.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pipeline import onnxfile
from pipeline.bundle import MAX_BUNDLE_BYTES, from_bytes, load
from pipeline.errors import ManifestError
from pipeline.onnxfile import inspect
from tests import zoo

GOOD = zoo.sensor()


def graph() -> onnx.ModelProto:
    return onnx.load_from_string(GOOD)


def refused(model: bytes | onnx.ModelProto, *words: str) -> None:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(ManifestError) as raised:
        from_bytes(data, "here.onnx")
    assert str(raised.value).startswith("here.onnx: ")
    for word in words:
        assert word in str(raised.value)
    assert len(str(raised.value)) < 2000


def test_the_schema_is_onnx_s() -> None:
    """Field numbers against those of the onnx package: bytes are bytes, messages are those messages."""
    ours = {"Segment": "TensorProto.Segment", "Tensor": "TypeProto.Tensor", "Sequence": "TypeProto.Sequence",
            "Map": "TypeProto.Map", "Dimension": "TensorShapeProto.Dimension"}  # fmt: skip
    same_shape = {"SparseTensor": "Tensor", "Optional": "Sequence"}
    for name, fields in onnxfile.SCHEMA.items():
        kind: Any = onnx.onnx_ml_pb2
        for part in ours.get(name, name).split("."):
            kind = getattr(kind, part)
        theirs = {f.number: f for f in kind.DESCRIPTOR.fields}
        for number, what in fields.items():
            if number not in theirs:  # Opaque, which onnx's own package leaves out
                assert (name, number) in {("TypeProto", 6), ("TypeProto", 7)}
            elif what in onnxfile.SCHEMA:
                found = theirs[number].message_type.name
                assert same_shape.get(found, found) == what
            elif what == "bytes":
                assert theirs[number].message_type is None, (name, number)


# --- files that are none ----------------------------------------------------------------------------------------------


def test_a_folder_a_fifo_a_socket_a_device(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "fifo.onnx")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock.onnx"))
    for name, said in (
        (tmp_path / "folder.onnx", "not a file, but a folder"),
        (tmp_path / "fifo.onnx", "not a file, but a FIFO"),  # and it does not wait for a writer
        (tmp_path / "sock.onnx", "cannot be read"),
        ("/dev/zero", "not a file, but a device"),
        ("/dev/null", "not a file, but a device"),
    ):
        with pytest.raises(ManifestError, match=said):
            load(name)


@pytest.mark.parametrize("name", ["nul\0.onnx", "x" * 300, "x" * 5000, "/", "."])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ManifestError):
        load(name)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_BUNDLE_BYTES + 1)  # sparse
    with pytest.raises(ManifestError, match=f"{MAX_BUNDLE_BYTES + 1} bytes; a bundle has at most"):
        load(path)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "loop.onnx"
    path.symlink_to(path)
    with pytest.raises(ManifestError, match="cannot be read"):
        load(path)


def test_a_file_that_onnxruntime_would_take_for_its_own_format() -> None:
    """It looks at bytes 4 to 8 alone; the same bytes can be a sound ONNX file that is walked and found harmless."""
    polyglot = b"\x12\x20abORTM" + b"x" * 26 + GOOD
    onnx.checker.check_model(onnx.load_from_string(polyglot))
    refused(polyglot, "ORT format")


# --- what a graph may not hold ----------------------------------------------------------------------------------------


def external(place: Callable[[onnx.ModelProto], TensorProto], **entries: str) -> onnx.ModelProto:
    model = graph()
    tensor = place(model)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return model


def constant(model: onnx.ModelProto) -> TensorProto:
    node = model.graph.node.add(op_type="Constant", output=["unused"])
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.ones(4, np.float32))))
    return node.attribute[0].t


def deep(model: onnx.ModelProto) -> TensorProto:
    """A constant in a branch of an If in a branch of an If."""
    here = model.graph
    for _ in range(2):
        node = here.node.add(op_type="If", input=["c"], output=["z"])
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        here = attribute.g
    return here.initializer.add(name="w", dims=[4], data_type=1, raw_data=bytes(16))


PLACES = {"initializer": lambda model: model.graph.initializer[0], "constant": constant, "branch": deep}


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "*/_ORT_MEM_ADDR_/*"])
@pytest.mark.parametrize("place", PLACES)
def test_data_in_another_file_or_at_an_address(place: str, location: str) -> None:
    refused(external(PLACES[place], location=location, offset="0", length="16"), "data lies outside", "one file")


def test_data_that_are_elsewhere_without_saying_where() -> None:
    refused(external(PLACES["initializer"]), "data lies outside")


@pytest.mark.parametrize("place", [lambda m: m.graph.node[0], lambda m: deep(m) and m.graph.node[-1]])
def test_an_operator_of_another_domain(place: Callable[[onnx.ModelProto], Any]) -> None:
    model = graph()
    place(model).domain = "com.evil"
    refused(model, "domain 'com.evil'", "standard operators")


def test_an_import_of_a_domain_that_nobody_uses_is_harmless() -> None:
    """Exporters leave them behind."""
    model = graph()
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert from_bytes(model.SerializeToString(), "x").manifest.task == "test sensor"


def test_functions_that_call_each_other() -> None:
    model = graph()
    model.opset_import.append(helper.make_opsetid("", 17))
    for name, other in (("f", "g"), ("g", "f")):
        node = helper.make_node(other, ["a"], ["b"])
        model.functions.append(helper.make_function("", name, ["a"], ["b"], [node], [helper.make_opsetid("", 17)]))
    refused(model, "functions", "inline")


def test_graphs_within_graphs() -> None:
    model = graph()
    here = model.graph
    for _ in range(40):
        here = here.node.add(op_type="If", input=["c"], output=["z"]).attribute.add(name="then_branch").g
        here.name = "g"
    refused(model, "graphs 17")


def test_types_within_types_end_somewhere() -> None:
    inner = b""
    for _ in range(3000):
        inner = onnx_field(4, onnx_field(1, inner))  # TypeProto.sequence_type.elem_type
    refused(GOOD + onnx_field(7, onnx_field(13, onnx_field(2, inner))))


def onnx_field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize("dims", [[2**40], [2**31, 2**31], [10**9, 10**9], [2**63 - 1] * 4, [-1], [10**6, 6, 16]])
def test_a_tensor_that_declares_more_than_it_holds(dims: list[int]) -> None:
    model = graph()
    model.graph.initializer[0].dims[:] = dims
    refused(model, "declares", "values and holds")


def test_dims_that_only_one_reader_sees() -> None:
    """A fixed32 under the number of dims: to protobuf an unknown field, to a careless walk a dimension of zero."""
    tensor = onnx_field(8, b"bomb") + b"\x08" + varint(2**40) + b"\x10\x01" + b"\x0d" + bytes(4)
    refused(GOOD + onnx_field(7, onnx_field(5, tensor)))
    model = graph()
    data = model.SerializeToString()
    whole = onnx_field(7, model.graph.SerializeToString() + onnx_field(5, tensor))
    model.ClearField("graph")
    assert len(data)
    refused(model.SerializeToString() + whole, "field 1 of TensorProto")


def test_two_graphs_that_protobuf_would_merge() -> None:
    refused(GOOD + onnx_field(7, b""), "stands twice")


def test_sparse_tensors() -> None:
    model = graph()
    sparse = model.graph.sparse_initializer.add(dims=[2**40])
    sparse.values.CopyFrom(helper.make_tensor("s", 1, [1], [1.0]))
    sparse.indices.CopyFrom(helper.make_tensor("i", 7, [1], [0]))
    refused(model, "sparse", "dense")


def test_a_manifest_twice() -> None:
    model = graph()
    model.metadata_props.add(key=model.metadata_props[0].key, value="{}")
    refused(model, "twice")


def test_text_that_is_none() -> None:
    refused(GOOD.replace(b"test sensor", b"test \xff\xfesor"), "cut short or damaged")


def test_more_nodes_than_a_model_has() -> None:
    model = graph()
    for _ in range(onnxfile.MAX_NODES + 1):
        model.graph.node.add()
    refused(model, "50000 nodes", "simplify")


@pytest.mark.no_cover  # traced, the walk through them takes ten times as long
def test_two_million_empty_messages_are_not_made_objects_of() -> None:
    refused(GOOD + onnx_field(8, b"") * (onnxfile.MAX_FIELDS + 1), "fields")
    refused(GOOD + onnx_field(99, bytes(onnxfile.MAX_UNKNOWN_BYTES + 1)), "ONNX does not have")


# --- what only running tells: in a process of its own, under limits ---------------------------------------------------

CHILD = """
import resource, sys, time
from pipeline.bundle import from_bytes
from pipeline import model
model.MAX_STEP_S = model.MAX_LOAD_S = 3.0
from pipeline.errors import ManifestError
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
began_s = time.monotonic()
try:
    from_bytes(open(sys.argv[1], "rb").read(), "hostile")
    print("loaded")
except ManifestError as error:
    print("ManifestError:", error)
# Not ru_maxrss: that counts what the process that started this one holds, tests before it and all.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(time.monotonic() - began_s, peak.split()[1])
"""


def survived(model: onnx.ModelProto, path: Path, *, max_s: float, max_kb: int) -> str:
    path.write_bytes(model.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, took = done.stdout.strip().rsplit("\n", 1)
    seconds, kilobytes = took.split()
    assert float(seconds) < max_s
    assert int(kilobytes) < max_kb
    return said


def with_scores_times(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """The sensor's scores, multiplied by what `nodes` make of constants under the name `big`."""
    model = graph()
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    for node in model.graph.node:
        node.output[:] = ["scores_before" if name == "scores" else name for name in node.output]
    model.graph.node.extend(nodes)
    model.graph.node.append(helper.make_node("ReduceMax", ["big"], ["most"], keepdims=0))
    model.graph.node.append(helper.make_node("Mul", ["scores_before", "most"], ["scores"]))
    return model


ONE = np.ones(1, np.float32)
GIB = 2**28  # float32 values
HUGE = np.array([100 * GIB])

BOMBS: dict[str, Callable[[], onnx.ModelProto]] = {
    "ConstantOfShape": lambda: with_scores_times(
        helper.make_node("ConstantOfShape", ["n"], ["big"], value=helper.make_tensor("v", 1, [1], [1.0])),
        n=HUGE,
    ),
    "Expand": lambda: with_scores_times(helper.make_node("Expand", ["a", "n"], ["big"]), a=ONE, n=HUGE),
    "Tile": lambda: with_scores_times(helper.make_node("Tile", ["a", "n"], ["big"]), a=ONE, n=HUGE),
    "Range": lambda: with_scores_times(
        helper.make_node("Range", ["a", "n", "b"], ["big"]),
        a=np.float32(0).reshape(()), b=np.float32(1).reshape(()), n=np.float32(50 * GIB).reshape(()),
    ),
    "a chain of Concat": lambda: with_scores_times(
        *(helper.make_node("Concat", [f"a{i}"] * 8, [f"a{i + 1}" if i < 11 else "big"], axis=0) for i in range(12)),
        a0=ONE,
    ),
    "an outer product": lambda: with_scores_times(
        helper.make_node("Mul", ["a", "b"], ["big"]),
        a=np.ones((60_000, 1), np.float32), b=np.ones((1, 60_000), np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_kilobyte_that_makes_gigabytes(bomb: str, tmp_path: Path) -> None:
    """Bounded by what the arena may hold (4 GiB); constants are not folded at load, where nothing bounds them."""
    said = survived(BOMBS[bomb](), tmp_path / "bomb.onnx", max_s=30, max_kb=5 << 20)
    assert said.startswith("ManifestError: hostile: the graph does not run on 2 streams")
    assert "bytes" in said


def test_a_loop_that_never_ends(tmp_path: Path) -> None:
    """onnxruntime looks between two operators whether it should stop."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "v"], ["v_out"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v_out", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    model = with_scores_times(
        helper.make_node("Loop", ["n", "go", "a"], ["big"], body=body),
        a=ONE, n=np.array(2**62), go=np.array(True),
    )  # fmt: skip
    said = survived(model, tmp_path / "loop.onnx", max_s=30, max_kb=2 << 20)
    assert said.startswith("ManifestError: hostile: the graph does not run on 2 streams")


@pytest.mark.parametrize("output", ["scores", "hn"])
def test_silence_that_yields_no_numbers(output: str) -> None:
    """By the state or by the scores: every stream would break at its first chunk."""
    model = graph()
    model.graph.initializer.append(numpy_helper.from_array(np.full(1, np.nan, np.float32), "nan"))
    for node in model.graph.node:
        node.output[:] = [f"{name}_before" if name == output else name for name in node.output]
    model.graph.node.append(helper.make_node("Mul", [f"{output}_before", "nan"], [output]))
    refused(model, "NaN", "Export it again")


# --- any bytes --------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"\xff" * 20)
@example(b"\x3a\xff\xff\xff\xff\x0f")
def test_the_walk_ends_with_any_bytes(data: bytes) -> None:
    with contextlib.suppress(ManifestError):
        assert inspect(data, "x").graphs


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_the_walk_ends_with_a_sound_file_that_was_damaged(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for at, value in changes:
        data[at] = value
    with contextlib.suppress(ManifestError):
        assert inspect(bytes(data), "x").graphs


@pytest.mark.parametrize("name", ["sensor", "look_ahead", "digits"])
def test_onnxruntime_survives_what_is_let_through(name: str, tmp_path: Path) -> None:
    """Bytes flipped, cut, put in and moved: a damaged bundle loads and gives the same twice, or is a ManifestError."""
    source, last = tmp_path / "bundle.onnx", tmp_path / "last.onnx"
    source.write_bytes(zoo.ZOO[name]())
    cases = int(os.environ.get("STATEBELT_FUZZ", "400"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.fuzz_bundle", str(source), str(last), "1", str(cases)],
        capture_output=True, text=True, timeout=280, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    kept = last.read_bytes().hex()[:200] if last.exists() else "none"
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-500:]} {done.stderr[-3000:]} {kept}"
    loaded, refusals = map(int, done.stdout.split()[-2:])
    assert loaded + refusals == cases
    assert loaded > 0
    assert refusals > 0
