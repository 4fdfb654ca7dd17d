"""The ONNX operators that nets of this repository are made of, as torch does them; those that remember: `unrolled`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ConfigError

Attributes = dict[str, Any]


def ints(values: Any) -> list[int]:
    """Whole numbers that a graph keeps as a tensor."""
    return [int(v) for v in values]


def _split(inputs: list[Any], a: Attributes) -> list[Tensor]:
    axis = a.get("axis", 0)
    sizes = ints(inputs[1]) if len(inputs) > 1 else inputs[0].shape[axis] // a["outputs"]
    return list(torch.split(inputs[0], sizes, dim=axis))


def _slice(inputs: list[Any], _: Attributes) -> list[Tensor]:
    x, starts, stops, *rest = inputs
    axes = ints(rest[0]) if rest and rest[0] is not None else list(range(len(starts)))
    steps = ints(rest[1]) if len(rest) > 1 else [1] * len(axes)
    for start, stop, axis, step in zip(ints(starts), ints(stops), axes, steps, strict=True):
        if step < 1:
            raise ConfigError("Slice backwards is not known here")
        places = range(x.shape[axis])[start:stop:step]
        x = x.narrow(axis, places.start, 0) if not places else x.index_select(axis, torch.tensor(list(places)))
    return [x]


def _pad(inputs: list[Any], a: Attributes) -> list[Tensor]:
    x, ends = inputs[0], ints(inputs[1])
    if a.get("mode", b"constant") != b"constant":
        raise ConfigError("Pad is known with a constant only")
    sides = [side for axis in reversed(range(x.ndim)) for side in (ends[axis], ends[x.ndim + axis])]
    return [functional.pad(x, sides, value=float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else 0.0)]


def _reshape(inputs: list[Any], _: Attributes) -> list[Tensor]:
    shape = [inputs[0].shape[n] if size == 0 else size for n, size in enumerate(ints(inputs[1]))]
    return [inputs[0].reshape(shape)]


def _squeeze(inputs: list[Any], _: Attributes) -> list[Tensor]:
    return [inputs[0].squeeze(tuple(ints(inputs[1])) if len(inputs) > 1 else tuple(range(inputs[0].ndim)))]


def _unsqueeze(inputs: list[Any], _: Attributes) -> list[Tensor]:
    x = inputs[0]
    for axis in sorted(ints(inputs[1])):
        x = x.unsqueeze(axis)
    return [x]


def _gather(inputs: list[Any], a: Attributes) -> list[Tensor]:
    x, places = inputs
    axis = a.get("axis", 0)
    taken = x.index_select(axis, places.reshape(-1) % x.shape[axis])
    return [taken.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])]


def _reduced(inputs: list[Any], a: Attributes) -> list[Tensor]:
    if len(inputs) < 2 or inputs[1] is None:
        raise ConfigError("ReduceSum is known with axes only")
    return [inputs[0].sum(dim=tuple(ints(inputs[1])), keepdim=a.get("keepdims", 1) == 1)]


def _normalised(inputs: list[Any], a: Attributes) -> list[Tensor]:
    x, scale, shift = inputs
    if a.get("axis", -1) not in (-1, x.ndim - 1):
        raise ConfigError("LayerNormalization is known over the last axis only")
    return [functional.layer_norm(x, x.shape[-1:], scale, shift, a.get("epsilon", 1e-5))]


def _full(inputs: list[Any], a: Attributes) -> list[Tensor]:
    value = numpy_helper.to_array(a["value"]) if "value" in a else np.zeros(1, np.float32)
    return [torch.from_numpy(value.copy()).expand(ints(inputs[0]))]


OPERATORS: dict[str, Callable[[list[Any], Attributes], list[Tensor]]] = {
    "Add": lambda i, _: [i[0] + i[1]],
    "Sub": lambda i, _: [i[0] - i[1]],
    "Mul": lambda i, _: [i[0] * i[1]],
    "Div": lambda i, _: [i[0] / i[1]],
    "MatMul": lambda i, _: [i[0] @ i[1]],
    "Log": lambda i, _: [i[0].log()],
    "Exp": lambda i, _: [i[0].exp()],
    "Sqrt": lambda i, _: [i[0].sqrt()],
    "Abs": lambda i, _: [i[0].abs()],
    "Sign": lambda i, _: [i[0].sign()],
    "Relu": lambda i, _: [i[0].relu()],
    "Tanh": lambda i, _: [i[0].tanh()],
    "Sigmoid": lambda i, _: [i[0].sigmoid()],
    "Softmax": lambda i, a: [i[0].softmax(dim=a.get("axis", -1))],
    "Identity": lambda i, _: [i[0]],
    "Transpose": lambda i, a: [i[0].permute(a.get("perm", list(reversed(range(i[0].ndim)))))],
    "Concat": lambda i, a: [torch.cat(i, dim=a["axis"])],
    "Range": lambda i, _: [torch.arange(int(i[0]), int(i[1]), int(i[2]))],
    "Shape": lambda i, a: [torch.tensor(i[0].shape[a.get("start", 0) : a.get("end", i[0].ndim)])],
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "ReduceSum": _reduced,
    "LayerNormalization": _normalised,
    "ConstantOfShape": _full,
}
"""By name: inputs (None where left out) and attributes to outputs; `outputs` among the attributes counts them."""
