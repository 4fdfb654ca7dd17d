"""The model as an ONNX graph, written operator by operator: no tracer between the weights and what is served.

Inputs `power [B, T, F]`, `h`, `c` `[L, B, H]`; outputs `probabilities [B, T, C]`, `hn`, `cn`. B and T are free.
ONNX orders the gates i, o, f, g where torch has i, f, g, o, and runs time first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from training.models.keyword import KeywordLSTM

OPSET = 17
IR_VERSION = 8


def gates(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[4H, ...]` in torch's order (i, f, g, o) to ONNX's (i, o, f, g)."""
    i, f, g, o = np.split(weights, 4)
    return np.concatenate([i, o, f, g])


def keyword_graph(model: KeywordLSTM) -> onnx.ModelProto:
    """The checked graph of `model.forward`."""
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    layers, hidden = model.layers, model.hidden
    classes, bins = weights["fold"].shape[1], weights["mel"].shape[0]
    constants: dict[str, NDArray[Any]] = {
        "mel": weights["mel"],
        "floor": np.array(model.floor, np.float32),
        "dct": weights["dct"],
        "mean": weights["mean"],
        "scale": weights["scale"],
        "direction": np.array([1], np.int64),
        "W_y": np.ascontiguousarray(weights["classify.weight"].T),
        "b_y": weights["classify.bias"],
        "fold": weights["fold"],
    }
    nodes = [
        helper.make_node("MatMul", ["power", "mel"], ["mel_power"]),
        helper.make_node("Add", ["mel_power", "floor"], ["floored"]),
        helper.make_node("Log", ["floored"], ["log_mel"]),
        helper.make_node("MatMul", ["log_mel", "dct"], ["cepstra"]),
        helper.make_node("Sub", ["cepstra", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["frames"]),
        helper.make_node("Transpose", ["frames"], ["y_0"], perm=[1, 0, 2]),
        helper.make_node("Split", ["h"], [f"h_{n}" for n in range(layers)], axis=0),
        helper.make_node("Split", ["c"], [f"c_{n}" for n in range(layers)], axis=0),
    ]
    for n in range(layers):
        biases = [gates(weights[f"lstm.bias_{kind}_l{n}"]) for kind in ("ih", "hh")]
        constants[f"W_{n}"] = gates(weights[f"lstm.weight_ih_l{n}"])[None]
        constants[f"R_{n}"] = gates(weights[f"lstm.weight_hh_l{n}"])[None]
        constants[f"B_{n}"] = np.concatenate(biases)[None]
        inputs = [f"y_{n}", f"W_{n}", f"R_{n}", f"B_{n}", "", f"h_{n}", f"c_{n}"]
        nodes.append(helper.make_node("LSTM", inputs, [f"Y_{n}", f"hn_{n}", f"cn_{n}"], hidden_size=hidden))
        nodes.append(helper.make_node("Squeeze", [f"Y_{n}", "direction"], [f"y_{n + 1}"]))
    nodes += [
        helper.make_node("Concat", [f"hn_{n}" for n in range(layers)], ["hn"], axis=0),
        helper.make_node("Concat", [f"cn_{n}" for n in range(layers)], ["cn"], axis=0),
        helper.make_node("MatMul", [f"y_{layers}", "W_y"], ["weighed"]),
        helper.make_node("Add", ["weighed", "b_y"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "fold"], ["folded"]),
        helper.make_node("Transpose", ["folded"], ["probabilities"], perm=[1, 0, 2]),
    ]

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    states = (layers, "B", hidden)
    made = helper.make_graph(
        nodes,
        "keyword_lstm",
        [value("power", "B", "T", bins), value("h", *states), value("c", *states)],
        [value("probabilities", "B", "T", classes), value("hn", *states), value("cn", *states)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    built = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="statebelt")
    built.ir_version = IR_VERSION
    onnx.checker.check_model(built, full_check=True)
    return built
