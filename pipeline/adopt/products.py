"""The same graph, quicker for many streams: its short convolutions as matrix products.

A model that is streamed in small blocks has convolutions with a few output frames a call, and onnxruntime runs them
one stream after the other, as a product of the weights with two or four columns: most of each vector instruction is
idle. As one product of all streams' frames with the weights those of two or four frames take a quarter to a tenth of
the time; towards fifteen frames, and for a lone stream, little or nothing is won, so `adopt` measures as well.

The bits stay what they were. A convolution of fewer than 16 frames sums the C * k terms of an output one by one, in
the order of its weights (MLAS, `MlasSgemmOperation`: for N <= 16 columns a block of the sum has 1,024 terms). A product
does the same as long as its sum is not cut: weights that stand in the graph as two axes are packed, in blocks of 256
terms; others are taken as they are, in blocks of 512 terms up to 32 columns, of 1,024 up to 16. So longer sums are
products with slices of the weights, on three axes. That is how onnxruntime is made, not what ONNX promises: `adopt`
compares the bytes, and keeps the graph as it was where they differ.

Imports onnx, when it is called.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.component import Array
from pipeline.manifest.model import ModelSpec

if TYPE_CHECKING:
    import onnx

_FRAMES = range(2, 16)
_LEAST_OUTPUTS = 16
"""Output frames, and channels, of a convolution that may be worth it. Of one alone onnxruntime makes another sum."""

_LEAST_OPSET = 11
"""From which on Slice and Pad take their numbers as inputs."""

_PACKED_TERMS = 256
_WIDTHS = ((512, 32), (1024, 16))
"""Beyond what is summed in one block when packed: (terms of a sum, columns of a slice of the weights)."""


class Products:
    """A model's short convolutions: those of `[B, C, T]` with constant weights, one group, and a T that follows from
    the graph and from the lengths of its inputs that `spec` tells.

    Attributes:
        counts: how many there are in each graph that has some: in the main one, or in the branches of an If.
    Raises:
        ImportError: the onnx package is not installed.
    """

    def __init__(self, model: bytes, spec: ModelSpec) -> None:
        import onnx

        self._model = model
        told = onnx.load_model_from_string(model)
        _tell(told.graph, spec)
        self.counts: dict[int, int] = {}
        if not any(one.domain == "" and one.version >= _LEAST_OPSET for one in told.opset_import):
            return
        self._shapes = onnx.shape_inference.infer_shapes(told, data_prop=True)
        self.counts = {n: len(g.shorts) for n, g in enumerate(self._graphs()[1]) if g.shorts}

    def write(self, graphs: Collection[int], *, spoilt: bool = False) -> bytes:
        """The model with those of these graphs as products; `spoilt`: with weights of zero, to see whether they act."""
        model, found = self._graphs()
        for n in graphs:
            _replace(found[n].graph, found[n].shorts, spoilt)
        return bytes(model.SerializeToString())

    def _graphs(self) -> tuple[onnx.ModelProto, list[_Graph]]:
        import onnx

        model = onnx.load_model_from_string(self._model)
        return model, list(_walk(model.graph, self._shapes.graph, {}, {}))


def _tell(graph: onnx.GraphProto, spec: ModelSpec) -> None:
    """Write the lengths that never vary into the graph's inputs."""
    lengths = {"T": spec.block if spec.blocks_a_call else 0, "F": spec.features, "1": 1}
    shapes = {spec.input: [lengths.get(axis, 0) for axis in spec.input_axes]}
    for carried in (*spec.states, *spec.given):
        shapes[carried.input] = [0 if axis == carried.batch_axis else n for axis, n in enumerate(carried.shape)]
    for tensor in graph.input:
        for dim, length in zip(tensor.type.tensor_type.shape.dim, shapes.get(tensor.name, ()), strict=False):
            if length:
                dim.dim_value = length


@dataclass(frozen=True)
class _Graph:
    """A graph and its short convolutions, by their outputs' names."""

    graph: onnx.GraphProto
    shorts: dict[str, _Short]


def _walk(
    graph: onnx.GraphProto,
    inferred: onnx.GraphProto,
    constants: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, Sequence[int | None]],
) -> Iterator[_Graph]:
    """A graph, whose shapes `inferred` has, and the branches within; these know the names of what is around them."""
    fed = {tensor.name for tensor in graph.input}  # old exports name their weights here too: then they are defaults
    constants = {**constants, **{tensor.name: tensor for tensor in graph.initializer if tensor.name not in fed}}
    shapes = {**shapes, **_shapes(inferred)}
    found = [_short(node, constants, shapes) for node in graph.node]
    yield _Graph(graph, {short.y: short for short in found if short is not None})
    for node, twin in zip(graph.node, inferred.node, strict=True):
        for branch, other in zip(_branches(node), _branches(twin), strict=True):
            yield from _walk(branch, other, constants, shapes)


def _replace(graph: onnx.GraphProto, shorts: Mapping[str, _Short], spoilt: bool) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] not in shorts:
            nodes.append(node)
            continue
        made = _Made(node.output[0] + "/product")
        _product(made, shorts[node.output[0]], spoilt)
        nodes += made.nodes
        graph.initializer.extend(made.initializers)
    del graph.node[:]
    graph.node.extend(nodes)
    used = _used(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


@dataclass(frozen=True)
class _Short:
    """A convolution: `x` `[B, C, T]` to `y` `[B, O, frames]`, `weight` `[O, C, k]`, `bias` `[O]` or None."""

    x: str
    y: str
    weight: Array
    bias: Array | None
    stride: int
    dilation: int
    pads: tuple[int, int]
    frames: int


def _short(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], shapes: Mapping[str, Sequence[int | None]]
) -> _Short | None:
    """The node as a short convolution, or None where it is something else."""
    import onnx

    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or node.input[1] not in constants:
        return None
    said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    weight = onnx.numpy_helper.to_array(constants[node.input[1]])
    length = next(iter(shapes.get(node.input[0], ())[2:]), None)
    plain = said.get("group", 1) == 1 and said.get("auto_pad", b"NOTSET") == b"NOTSET"
    if weight.ndim != 3 or weight.dtype != np.float32 or length is None or not plain:
        return None
    bias_name = node.input[2] if len(node.input) > 2 else ""
    if bias_name and bias_name not in constants:
        return None
    (stride,), (dilation,) = said.get("strides", [1]), said.get("dilations", [1])
    first, last = said.get("pads", [0, 0])
    reach = (weight.shape[2] - 1) * dilation + 1
    frames = (length + first + last - reach) // stride + 1
    if frames not in _FRAMES or len(weight) < _LEAST_OUTPUTS or weight[0].size > _WIDTHS[-1][0]:
        return None
    bias = onnx.numpy_helper.to_array(constants[bias_name]) if bias_name else None
    return _Short(node.input[0], node.output[0], weight, bias, stride, dilation, (first, last), frames)


class _Made:
    """Nodes that take the place of one, all their names beginning alike."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: Array) -> str:
        import onnx

        name = f"{self._prefix}/constant_{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        import onnx

        name = to or f"{self._prefix}/{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name


def _windows(g: _Made, c: _Short) -> str:
    """`[B * frames, C * k]`: what each frame of each stream sees, in the order of the weights."""
    channels, taps = c.weight.shape[1:]
    row = g.integers(-1, channels * taps)
    if channels == 1:  # a window of raw samples: neighbours in memory
        x = g.op("Pad", c.x, g.integers(0, 0, c.pads[0], 0, 0, c.pads[1])) if any(c.pads) else c.x
        axis, step, one = g.integers(2), g.integers(c.dilation), g.integers(0, 1, taps)
        reach = (taps - 1) * c.dilation + 1
        starts = [t * c.stride for t in range(c.frames)]
        seen = [g.op("Slice", x, g.integers(t), g.integers(t + reach), axis, step) for t in starts]
        return g.op("Reshape", g.op("Concat", *(g.op("Reshape", each, one) for each in seen), axis=1), row)
    # Few taps: with the channels innermost, zeros are put before and behind, and frames chosen, in whole runs.
    x = g.op("Transpose", c.x, perm=[0, 2, 1])
    x = g.op("Pad", x, g.integers(0, c.pads[0], 0, 0, c.pads[1], 0)) if any(c.pads) else x
    axis, step, last = g.integers(1), g.integers(c.stride), g.integers(0, 0, channels, 1)
    reach = (c.frames - 1) * c.stride + 1
    starts = [tap * c.dilation for tap in range(taps)]
    seen = [g.op("Slice", x, g.integers(t), g.integers(t + reach), axis, step) for t in starts]
    return g.op("Reshape", g.op("Concat", *(g.op("Reshape", each, last) for each in seen), axis=3), row)


def _product(g: _Made, c: _Short, spoilt: bool) -> None:
    """The frames' windows times the weights, then back to `[B, O, frames]`."""
    outputs, terms = c.weight.shape[0], c.weight[0].size
    rows = _windows(g, c)
    packed = terms <= _PACKED_TERMS
    width = outputs if packed else next(width for most, width in _WIDTHS if terms <= most)
    slices = -(-outputs // width)
    weight = np.zeros((terms, slices * width), np.float32)
    weight[:, :outputs] = 0 if spoilt else c.weight.reshape(outputs, terms).T
    bias = np.zeros(slices * width, np.float32)
    if c.bias is not None:
        bias[:outputs] = c.bias
    if packed:
        y = g.op("MatMul", rows, g.constant(weight))
        y = y if c.bias is None else g.op("Add", y, g.constant(bias))
    else:
        y = g.op("MatMul", rows, g.constant(np.ascontiguousarray(weight.reshape(terms, slices, width).swapaxes(0, 1))))
        y = y if c.bias is None else g.op("Add", y, g.constant(bias.reshape(slices, 1, width)))
        y = g.op("Transpose", y, perm=[1, 0, 2])
    y = g.op("Reshape", y, g.integers(-1, c.frames, slices * width))
    if slices * width != outputs:
        y = g.op("Slice", y, g.integers(0), g.integers(outputs), g.integers(2))
    g.op("Transpose", y, to=c.y, perm=[0, 2, 1])  # it goes, with the first one of a convolution that follows


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int | None]]:
    return {
        tensor.name: [dim.dim_value or None for dim in tensor.type.tensor_type.shape.dim]
        for tensor in (*graph.input, *graph.value_info, *graph.output)
    }


def _branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _used(graph: onnx.GraphProto) -> set[str]:
    """Names that its nodes, those of branches too, take in, and those that it gives."""
    names = {name for node in graph.node for name in node.input} | {tensor.name for tensor in graph.output}
    return names.union(*(_used(branch) for node in graph.node for branch in _branches(node)))
