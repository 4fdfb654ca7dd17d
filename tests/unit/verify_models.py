"""Bundles of a few nodes each, sound ones and others, for `verify` to judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.manifest import (
    GivenSpec,
    HeadSpec,
    IdentityFrontend,
    InputSpec,
    Manifest,
    ModelSpec,
    ScoresHead,
    StateSpec,
)
from tests import zoo

FEATURES = 3
Node = tuple[str, list[str], str, dict[str, Any]]


def constant(name: str, value: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def model(
    *nodes: Node | onnx.NodeProto,
    after: str = "last",
    init: tuple[onnx.TensorProto, ...] = (),
    head: HeadSpec | None = None,
    **spec: Any,
) -> bytes:
    """A bundle whose `nodes` make `scores` `[B, T, 3]` of `x`, of `before` (x one frame earlier, which the state `past`
    carries) or of `given` `[B, 3]`; `after` is what the state goes on as, `last` being right."""
    most = np.iinfo(np.int64).max
    bounds = {"zero": 0, "one": 1, "minus_one": -1, "minus_two": -2, "end": most, "least": -most}
    made = [node if isinstance(node, onnx.NodeProto) else
            helper.make_node(node[0], node[1], [node[2]], **node[3]) for node in nodes]  # fmt: skip
    given = (
        [GivenSpec(input="given", shape=(1, 3), batch_axis=0)] if "given" in {i for n in made for i in n.input} else []
    )
    inputs = {"x": ["B", "T", FEATURES], "past": ["B", 1, FEATURES]}
    if given:
        inputs["given"] = ["B", FEATURES]
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["past", "x"], ["wide"], axis=1),
            helper.make_node("Slice", ["wide", "minus_one", "end", "one"], ["last"]),
            helper.make_node("Slice", ["wide", "zero", "minus_one", "one"], ["before"]),
            *made,
            helper.make_node("Identity", [after], ["past_n"]),
        ],
        "model",
        [helper.make_tensor_value_info(name, zoo.FLOAT, shape) for name, shape in inputs.items()],
        [
            helper.make_tensor_value_info("scores", zoo.FLOAT, ["B", "T", FEATURES]),
            helper.make_tensor_value_info("past_n", zoo.FLOAT, ["B", 1, FEATURES]),
        ],
        [*(constant(name, [value], np.int64) for name, value in bounds.items()), *init],
    )
    manifest = Manifest(
        task="test verify",
        labels=("a", "b", "c"),
        licence="Apache-2.0",
        provenance=zoo.PROVENANCE,
        input=InputSpec(sample_rate_hz=100, channels=FEATURES, sample_type="float32"),
        frontend=IdentityFrontend(),
        model=ModelSpec(
            input="x", output="scores", features=FEATURES, classes=FEATURES, given=tuple(given),
            states=(StateSpec(input="past", output="past_n", shape=(1, 1, FEATURES), batch_axis=0),), **spec,
        ),
        head=head or ScoresHead(),
    )  # fmt: skip
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return zoo.with_manifest(whole, manifest)


SOUND: Node = ("Sub", ["x", "before"], "scores", {})


def quantised(**spec: Any) -> bytes:
    """A product of bytes, scaled by the largest sample of the whole call, whatever stream it belongs to."""
    rng = np.random.default_rng(0)
    return model(
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero_point"]),
        ("MatMulInteger", ["q", "weights", "zero_point"], "sums", {}),
        ("Cast", ["sums"], "floats", {"to": zoo.FLOAT}),
        ("Mul", ["floats", "scale"], "scaled", {}),
        ("Mul", ["scaled", "unit"], "products", {}),
        ("Sub", ["products", "before"], "scores", {}),
        init=(constant("weights", rng.integers(-100, 100, (FEATURES, FEATURES)), np.int8), constant("unit", 0.01)),
        **spec,
    )


DELAYED = (
    ("Concat", ["past", "x"], "long", {"axis": 1}),
    ("Slice", ["long", "zero", "minus_one", "one"], "scores", {}),
)
"""Each score is the frame before: the last one of a signal changes none."""
