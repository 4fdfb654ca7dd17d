"""Published models of several files, as one graph: what their authors run between the files becomes operators.

A bundle is one `.onnx` file, and a model step is one call. Some models are published as two graphs with numpy between
them. `merge` writes that numpy as ONNX operators. Weights are moved, never changed; the sums they take part in run in
another order, so that a merged graph equals its parts to float32's rounding, not bit by bit.

The only module of the runtime that imports onnx, and only when `merge` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.component import Array
from pipeline.errors import ConfigError, ManifestError
from pipeline.onnxfile import inspect

if TYPE_CHECKING:
    import onnx


def merge(name: str, models: Sequence[bytes]) -> bytes:
    """One graph of a model's files.

    Args:
        name: of the model, one of `MERGES`.
        models: the bytes of its files, in its authors' order.
    Raises:
        ConfigError: no such name, another number of files, or the onnx package is not installed.
        ManifestError: the files are not that model's.
    """
    if name not in MERGES:
        raise ConfigError(f"no merge is called {name!r}; there are: {', '.join(sorted(MERGES))}")
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(
            f"to merge the files of {name!r} takes the onnx package, which is not installed: "
            "pip install 'statebelt[adopt]'"
        ) from None
    build, files = MERGES[name]
    if len(models) != files:
        raise ConfigError(f"{name!r} is made of {files} files; got {len(models)}")
    try:
        for n, model in enumerate(models):
            inspect(model, f"{name}, file {n + 1}")
        opened = [onnx.load_model_from_string(model) for model in models]
        for one in opened:
            onnx.checker.check_model(one)
        merged = build(opened)
        onnx.checker.check_model(merged, full_check=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ManifestError(f"the files given are no {name!r} ({' '.join(str(error).split())[:400]})") from None
    return bytes(merged.SerializeToString())


def dft(window: int) -> dict[str, Array]:
    """numpy's `rfft` and `irfft` of a real window as matrices, computed in float64, stored as float32.

    With `re = x @ cos`, `im = x @ sin` (each `[window] -> [bins]`), `x = re @ inverse_cos + im @ inverse_sin`.
    """
    sample, bin_ = np.arange(window), np.arange(window // 2 + 1)
    # The product is reduced before it becomes an angle: float64 then has every bin to its last digit.
    angle = 2 * np.pi / window * (sample[:, None] * bin_ % window)
    weight = np.full((len(bin_), 1), 2 / window)  # each bin stands for itself and its mirror image
    weight[0] = 1 / window
    if window % 2 == 0:
        weight[-1] = 1 / window
    cos, sin = np.cos(angle), -np.sin(angle)
    matrices = {"cos": cos, "sin": sin, "inverse_cos": weight * cos.T, "inverse_sin": weight * sin.T}
    return {name: np.ascontiguousarray(matrix, np.float32) for name, matrix in matrices.items()}


def _dtln(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """DTLN (Westhausen and Meyer, 2020): a mask on the spectrum, then one on learned features, each from two LSTMs.

    The first graph takes magnitudes to a mask, the second a window of the masked signal to a window of the clean one.
    Here: `x [B, 1, window]`, `mask_state` and `signal_state [B, 2, H, 2]` to `y [B, 1, window]` and the two states
    under the same names with `_out`. Windows of `y` overlap as those of `x` do; added up they are the signal.

    One frame a call: the second graph is written out for one. The batch, fixed at 1 in the files, is free.
    """
    from onnx import TensorProto, helper, numpy_helper

    parts = [_Part("mask", models[0].graph), _Part("signal", models[1].graph)]
    window = parts[1].width
    if parts[0].width != window // 2 + 1:
        raise ManifestError(
            f"no DTLN: the first file takes {parts[0].width} magnitudes, the second windows of {window} samples, "
            f"which have {window // 2 + 1}. Give model_1.onnx, then model_2.onnx"
        )
    versions = {opset.version for model in models for opset in model.opset_import if opset.domain in ("", "ai.onnx")}
    if len(versions) != 1:
        raise ManifestError(f"no DTLN: its files are of operator sets {sorted(versions)}; convert them to one")
    before = [
        ("MatMul", ["x", "cos"], "re"),
        ("MatMul", ["x", "sin"], "im"),
        ("Mul", ["re", "re"], "re_squared"),
        ("Mul", ["im", "im"], "im_squared"),
        ("Add", ["re_squared", "im_squared"], "power"),
        ("Sqrt", ["power"], "magnitude"),
    ]
    # The mask is real: applied to both parts of the spectrum it leaves the phase, which so is never computed.
    between = [
        ("Mul", ["re", "mask"], "re_masked"),
        ("Mul", ["im", "mask"], "im_masked"),
        ("MatMul", ["re_masked", "inverse_cos"], "even"),
        ("MatMul", ["im_masked", "inverse_sin"], "odd"),
        ("Add", ["even", "odd"], "masked"),
    ]
    nodes = [helper.make_node(op, ins, [out], name=out) for op, ins, out in before]
    nodes += parts[0].nodes({"frame": "magnitude", "out": "mask", "state": "mask_state", "state_out": "mask_state_out"})
    nodes += [helper.make_node(op, ins, [out], name=out) for op, ins, out in between]
    nodes += parts[1].nodes({"frame": "masked", "out": "y", "state": "signal_state", "state_out": "signal_state_out"})
    constants = dft(window) | parts[0].constants | parts[1].constants

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    states = [(f"{part.name}_state", part.state_shape) for part in parts]
    graph = helper.make_graph(
        nodes,
        "dtln",
        [value("x", "B", 1, window), *(value(name, "B", *shape) for name, shape in states)],
        [value("y", "B", 1, window), *(value(f"{name}_out", "B", *shape) for name, shape in states)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", versions.pop())], producer_name="statebelt")
    built.ir_version = max(model.ir_version for model in models)
    return built


class _Part:
    """One file of a DTLN: `[B, 1, width]` and a state `[B, *state_shape]` to the same shapes, or nearly.

    Everything in it is called by the part's name and its own, so that two files may use the same names.
    """

    def __init__(self, name: str, graph: onnx.GraphProto) -> None:
        from onnx import numpy_helper

        self.name = name
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        # By rank, not by place: converters differ in the order they write.
        frame, state = (_of_rank(inputs, rank, name) for rank in (3, 4))
        out, state_out = (_of_rank(graph.output, rank, name) for rank in (3, 4))
        self.width, self.state_shape = _lengths(frame)[-1], _lengths(state)[1:]
        if _lengths(frame)[1] != 1 or min(self.width, *self.state_shape) < 1:
            raise ManifestError(
                f"no DTLN: the graph of the {name} takes {_lengths(frame)} with a state of {_lengths(state)}; expected "
                "one frame [1, 1, width], and all lengths given"
            )
        self._face = {frame.name: "frame", state.name: "state", out.name: "out", state_out.name: "state_out"}
        self._nodes = _as_matmul(list(graph.node), constants)
        for node in self._nodes:
            if node.op_type == "Reshape" and node.input[-1] in constants:
                constants[node.input[-1]] = _any_batch(constants[node.input[-1]])
        used = {name for node in self._nodes for name in node.input}
        self.constants = {self._called(old, {}): array for old, array in constants.items() if old in used}

    def _called(self, old: str, names: Mapping[str, str]) -> str:
        """What a tensor is called in the merged graph; one that is left out stays without a name."""
        if not old:
            return ""
        return names.get(self._face.get(old, ""), f"{self.name}.{old}")

    def nodes(self, names: Mapping[str, str]) -> list[onnx.NodeProto]:
        """The nodes; `frame`, `out`, `state` and `state_out` of the file called as `names` says."""
        import onnx

        found = []
        for node in self._nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = node.name and f"{self.name}.{node.name}"
            copy.input[:] = [self._called(old, names) for old in node.input]
            copy.output[:] = [self._called(old, names) for old in node.output]
            found.append(copy)
        return found


def _lengths(value: onnx.ValueInfoProto) -> list[int]:
    """A tensor's shape, 0 where the graph leaves a length open."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _of_rank(values: Sequence[onnx.ValueInfoProto], rank: int, name: str) -> onnx.ValueInfoProto:
    found = [value for value in values if len(_lengths(value)) == rank]
    if len(values) != 2 or len(found) != 1:
        have = ", ".join(f"{value.name} {_lengths(value)}" for value in values)
        raise ManifestError(f"no DTLN: the graph of the {name} has {have}; expected a frame of 3 axes, a state of 4")
    return found[0]


def _any_batch(shape: Array) -> Array:
    """A shape that begins with one stream, for any number of them: `[1, 128]` becomes `[-1, 128]`."""
    free = shape.copy()
    if len(free) and free[0] == 1 and (free[1:] > 0).all():
        free[0] = -1
    return free


def _as_matmul(nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> list[onnx.NodeProto]:
    """Every convolution over a single sample, with the two Transposes around it, as the MatMul that it is.

    onnxruntime convolves stream by stream; a MatMul takes the batch at once and gives a row the same bytes
    whoever shares it.
    """
    from onnx import helper

    made_by = {output: node for node in nodes for output in node.output}
    used_by: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            used_by.setdefault(name, []).append(node)
    instead: dict[str, onnx.NodeProto] = {}  # by the output that it makes
    gone: set[str] = set()
    for conv in nodes:
        weight = constants.get(conv.input[1]) if _is_pointwise(conv) else None
        before, after = made_by.get(conv.input[0]), used_by.get(conv.output[0], [])
        if weight is None or weight.shape[2:] != (1,) or len(after) != 1:
            continue
        if before is None or not (_swaps(before) and _swaps(after[0])) or len(used_by[before.output[0]]) != 1:
            continue
        name = f"{conv.input[1]}.T"
        constants[name] = weight[:, :, 0].T
        instead[after[0].output[0]] = helper.make_node(
            "MatMul", [before.input[0], name], [after[0].output[0]], name=conv.name
        )
        gone |= {before.output[0], conv.output[0]}
    return [instead.get(node.output[0], node) for node in nodes if node.output[0] not in gone]


def _is_pointwise(node: onnx.NodeProto) -> bool:
    """A Conv over one axis without bias, groups, strides or padding."""
    from onnx import helper

    if node.op_type != "Conv" or len(node.input) != 2:
        return False
    has = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return has.get("group", 1) == 1 and set(has.get("strides", [1])) == {1} and not any(has.get("pads", []))


def _swaps(node: onnx.NodeProto) -> bool:
    """A Transpose of the last two of three axes."""
    return node.op_type == "Transpose" and [list(a.ints) for a in node.attribute] == [[0, 2, 1]]


MERGES: dict[str, tuple[Callable[[Sequence[onnx.ModelProto]], onnx.ModelProto], int]] = {"dtln": (_dtln, 2)}
"""How a model is merged, and from how many files."""
