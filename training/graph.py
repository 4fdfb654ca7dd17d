"""A net as an ONNX graph, written operator by operator: no tracer between the weights and what is served.

Inputs `x [B, T, F]` and the states by their names; outputs `y [B, T, C]` and the states with an `n` behind their names.
B is free, and T where a call takes any number of blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.manifest import METADATA_KEY, Manifest, ModelSpec, StateSpec
from training.models.encoder import State
from training.models.net import Net
from training.models.together import Together

OPSET = 17
IR_VERSION = 8
INPUT, OUTPUT = "x", "y"

Values = Tensor | NDArray[Any]


class GraphBuilder:
    """Operators and constants, appended one by one; names are made up here, and are unique."""

    def __init__(self, states: tuple[State, ...]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._states = {state.name: state for state in states}
        self._member = ""
        self._count = 0

    @contextlib.contextmanager
    def member(self, prefix: str) -> Iterator[None]:
        """What is appended in here is one net of several: its states have `prefix` before their names in the graph."""
        before, self._member = self._member, prefix
        yield
        self._member = before

    def constant(self, values: Values, name: str = "k") -> str:
        """An array of the graph; equal ones are kept once."""
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        array = np.ascontiguousarray(array).reshape(array.shape)
        for known, have in self.constants.items():
            if have.dtype == array.dtype and have.shape == array.shape and have.tobytes() == array.tobytes():
                return known
        key = name if name not in self.constants and name not in self._states else f"{name}_{len(self.constants)}"
        self.constants[key] = array
        return key

    def integers(self, *values: int) -> str:
        """An int64 vector: what shapes, axes and borders are told by."""
        return self.constant(np.array(values, np.int64), "at_" + "_".join(str(v).replace("-", "m") for v in values))

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Append an operator; the names of what it yields."""
        names = [f"{kind.lower()}_{self._count}" + (f"_{n}" if outputs > 1 else "") for n in range(outputs)]
        self._count += 1
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append an operator that yields one array; its name."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def split(self, x: str, parts: int, axis: int) -> list[str]:
        """Cut into equal parts."""
        return self.ops("Split", x, outputs=parts, axis=axis) if parts > 1 else [x]

    def cut(self, x: str, start: int | None, stop: int | None, axis: int, step: int = 1) -> str:
        """x[start:stop:step] along an axis."""
        last = np.iinfo(np.int64).max
        borders = self.integers(start or 0), self.integers(last if stop is None else stop)
        return self.op("Slice", x, *borders, self.integers(axis), *([self.integers(step)] if step > 1 else []))

    def linear(self, x: str, weight: Values, bias: Values | None = None) -> str:
        """x W^T + b for `[..., I]`, weight `[O, I]` as torch keeps it."""
        array = weight.detach().cpu().numpy() if isinstance(weight, Tensor) else weight
        y = self.op("MatMul", x, self.constant(array.T, "W"))
        return y if bias is None else self.op("Add", y, self.constant(bias, "b"))

    def normalised(self, x: str, norm: nn.LayerNorm) -> str:
        """Layer normalisation of the last axis."""
        scale, shift = self.constant(norm.weight, "gamma"), self.constant(norm.bias, "beta")
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=norm.eps)

    def recurrent(
        self,
        kind: str,
        x: str,
        w: NDArray[np.float32],
        r: NDArray[np.float32],
        b: NDArray[np.float32],
        states: Sequence[str],
        peepholes: NDArray[np.float32] | None = None,
        **attributes: Any,
    ) -> list[str]:
        """ONNX RNN, LSTM or GRU of one direction: `[T, B, I]` and states `[1, B, H]` to `[T, B, H]` and states.

        w `[G * H, I]`, r `[G * H, H]`, b `[2 * G * H]`, peepholes `[3 * H]`, all in ONNX's order of gates.
        No states: zeros.
        """
        begin = list(states)
        if peepholes is not None:
            begin = [*(begin or ["", ""]), self.constant(peepholes[None], "P")]
        weights = [self.constant(w[None], "W"), self.constant(r[None], "R"), self.constant(b[None], "B")]
        count = {"LSTM": 3}.get(kind, 2)
        lengths = [""] if begin else []
        y, *after = self.ops(
            kind, x, *weights, *lengths, *begin, outputs=count, hidden_size=r.shape[1], **attributes
        )  # fmt: skip
        return [self.op("Squeeze", y, self.integers(1)), *after]

    def state(self, name: str) -> str:
        """What was carried in."""
        if self._member + name not in self._states:
            raise KeyError(f"{self._member + name!r} is none of the states {list(self._states)}")
        return self._member + name

    def carry(self, name: str, value: str) -> None:
        """Carry `value` on as the state `name`."""
        self.nodes.append(helper.make_node("Identity", [value], [f"{self.state(name)}n"]))


@torch.no_grad()
def graph(net: Net | Together) -> onnx.ModelProto:
    """The checked graph of `net.forward`."""
    g = GraphBuilder(net.states)
    g.nodes.append(helper.make_node("Identity", [net.nodes(g, INPUT)], [OUTPUT]))
    frames: int | str = net.block if net.one_block else "T"
    element = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

    def told(state: State, name: str) -> onnx.ValueInfoProto:
        shape: list[int | str | None] = list(state.shape)
        shape[state.batch_axis] = "B"
        return helper.make_tensor_value_info(name, element[state.dtype], shape)

    def rows(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", frames, width])

    made = helper.make_graph(
        g.nodes,
        net.kind,
        [rows(INPUT, net.frames), *(told(state, state.name) for state in net.states)],
        [rows(OUTPUT, net.classes), *(told(state, f"{state.name}n") for state in net.states)],
        [numpy_helper.from_array(array, name) for name, array in g.constants.items()],
    )
    built = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="statebelt")
    built.ir_version = IR_VERSION
    onnx.checker.check_model(built, full_check=True)
    return built


def model_spec(net: Net | Together, *, tail_frames: int = 0, tolerance: float = 0.0) -> ModelSpec:
    """What a manifest says of `graph(net)`."""
    return ModelSpec(
        input=INPUT,
        output=OUTPUT,
        features=net.frames,
        classes=net.classes,
        states=tuple(
            StateSpec(input=s.name, output=f"{s.name}n", shape=s.shape, batch_axis=s.batch_axis, dtype=s.dtype)
            for s in net.states
        ),
        one_block=net.one_block,
        block=net.block,
        latency=net.latency,
        tail_frames=tail_frames,
        tolerance=tolerance,
    )


def with_manifest(built: onnx.ModelProto, manifest: Manifest) -> bytes:
    """The bytes of a bundle: the graph with its manifest inside."""
    copy = onnx.ModelProto()
    copy.CopyFrom(built)
    helper.set_model_props(copy, {METADATA_KEY: manifest.to_json()})
    return bytes(copy.SerializeToString())
