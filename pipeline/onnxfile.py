"""What an `.onnx` file holds, found out before onnxruntime sees it.

A bundle may come from a stranger. onnxruntime parses, optimises and allocates as a file tells it to, in native code;
so the file's own bytes (protobuf) are walked first, building nothing, and what a bundle has no need of is refused: data
in other files or at addresses, operators of unknown domains, functions (which can call each other for ever), sparse
tensors (which are written out in full), tensors that declare more than they hold, more nodes or deeper graphs than any
model has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.errors import ManifestError

MAX_FIELDS = 2_000_000
"""Protobuf fields of a file, weights counting as one: each becomes an object of some hundred bytes."""

MAX_NODES = 50_000
MAX_GRAPH_DEPTH = 16
"""Graphs within graphs (`If`, `Loop`, `Scan`)."""

MAX_RANK = 32
MAX_UNKNOWN_BYTES = 1 << 20
"""In fields that no version of ONNX known here has."""

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains of operators that onnxruntime itself brings along."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VALUES_A_BYTE = 8  # the densest element type has 4, and what describes a tensor takes some bytes too

# Message types by name: field number to the type of a message, or `bytes` (text, numbers), or why it is refused.
_FUNCTIONS = "it defines functions: inline them (onnx.inliner.inline_local_functions) and save it again"
_SPARSE = "it has sparse tensors: store them dense"
_EXTERNAL = (
    "a tensor's data lies outside of it: a bundle is one file; save it with save_as_external_data=False "
    "(onnx.load reads the other file, onnx.save then writes one)"
)
_TRAINING = "it holds training information: export it for inference"
SCHEMA: dict[str, dict[int, str]] = {
    "ModelProto": {1: "bytes", 2: "bytes", 3: "bytes", 4: "bytes", 5: "bytes", 6: "bytes", 7: "GraphProto",
                   8: "OperatorSetIdProto", 14: "StringStringEntryProto", 20: _TRAINING, 25: _FUNCTIONS},
    "OperatorSetIdProto": {1: "bytes", 2: "bytes"},
    "StringStringEntryProto": {1: "bytes", 2: "bytes"},
    "GraphProto": {1: "NodeProto", 2: "bytes", 5: "TensorProto", 10: "bytes", 11: "ValueInfoProto",
                   12: "ValueInfoProto", 13: "ValueInfoProto", 14: "TensorAnnotation", 15: _SPARSE,
                   16: "StringStringEntryProto"},
    "NodeProto": {1: "bytes", 2: "bytes", 3: "bytes", 4: "bytes", 5: "AttributeProto", 6: "bytes", 7: "bytes",
                  8: "bytes", 9: "StringStringEntryProto"},
    "AttributeProto": {1: "bytes", 2: "bytes", 3: "bytes", 4: "bytes", 5: "TensorProto", 6: "GraphProto", 7: "bytes",
                       8: "bytes", 9: "bytes", 10: "TensorProto", 11: "GraphProto", 13: "bytes", 14: "TypeProto",
                       15: "TypeProto", 20: "bytes", 21: "bytes", 22: _SPARSE, 23: _SPARSE},
    "TensorProto": {1: "bytes", 2: "bytes", 3: "Segment", 4: "bytes", 5: "bytes", 6: "bytes", 7: "bytes", 8: "bytes",
                    9: "bytes", 10: "bytes", 11: "bytes", 12: "bytes", 13: _EXTERNAL, 14: "bytes",
                    16: "StringStringEntryProto"},
    "Segment": {1: "bytes", 2: "bytes"},
    "TensorAnnotation": {1: "bytes", 2: "StringStringEntryProto"},
    "ValueInfoProto": {1: "bytes", 2: "TypeProto", 3: "bytes", 4: "StringStringEntryProto"},
    "TypeProto": {1: "Tensor", 4: "Sequence", 5: "Map", 6: "bytes", 8: "Tensor", 9: "Sequence"},
    "Tensor": {1: "bytes", 2: "TensorShapeProto"},
    "Sequence": {1: "TypeProto"},
    "Map": {1: "bytes", 2: "TypeProto"},
    "TensorShapeProto": {1: "Dimension"},
    "Dimension": {1: "bytes", 2: "bytes", 3: "bytes"},
}  # fmt: skip
_ONCE = {("ModelProto", 7), ("AttributeProto", 5), ("AttributeProto", 6)}

MAX_DEPTH = 100
"""Messages within messages; protobuf's own limit."""


@dataclass
class OnnxFile:
    """What was found: `metadata` by key, and how much there is of the rest."""

    metadata: dict[str, str] = field(default_factory=dict)
    nodes: int = 0
    fields: int = 0
    graphs: int = 0
    unknown_bytes: int = 0


def inspect(model: bytes, source: str) -> OnnxFile:
    """Walk the file.

    Args:
        model: its bytes.
        source: where they came from, for messages.
    Raises:
        ManifestError: it is cut short, no ONNX model, or holds what a bundle must not hold.
    """
    if model[4:8] == b"ORTM":  # onnxruntime would read it by that alone, whatever else it is
        raise ManifestError(f"{source}: a model in ORT format; expected the .onnx file that it was made from")
    found = OnnxFile()
    try:
        _message(memoryview(model), "ModelProto", found, 0, 0)
    except _Refused as refused:
        raise ManifestError(f"{source}: refused: {refused}") from None
    except (IndexError, UnicodeDecodeError) as error:
        raise ManifestError(
            f"{source}: {len(model)} bytes that are no ONNX model, or one that was cut short or damaged "
            f"({error}): copy the file again"
        ) from None
    if found.graphs == 0:
        raise ManifestError(f"{source}: no ONNX model: {len(model)} bytes without a graph")
    return found


class _Refused(Exception):
    """The file says what it must not."""


def _message(data: memoryview, kind: str, found: OnnxFile, depth: int, graphs: int) -> None:
    """Walk one message. Raises _Refused, and IndexError where its bytes end before it does."""
    if depth > MAX_DEPTH or graphs > MAX_GRAPH_DEPTH:
        raise _Refused(f"messages {depth} deep, graphs {graphs}; at most {MAX_DEPTH} and {MAX_GRAPH_DEPTH}")
    if kind == "GraphProto":
        found.graphs += 1
        graphs += 1
    elif kind == "NodeProto":
        found.nodes += 1
        if found.nodes > MAX_NODES:
            raise _Refused(f"more than {MAX_NODES} nodes: simplify the graph")
    if kind == "TensorProto":
        _tensor(data)
    known = SCHEMA[kind]
    entry: dict[int, str] = {}
    seen: set[int] = set()
    for number, _, value in _fields(data, found):
        what = known.get(number)
        if (kind, number) in _ONCE:
            if number in seen:
                raise _Refused(f"field {number} of {kind} stands twice: protobuf would merge the two")
            seen.add(number)
        if what is None:
            found.unknown_bytes += len(value) if isinstance(value, memoryview) else 0
            if found.unknown_bytes > MAX_UNKNOWN_BYTES:
                raise _Refused(f"more than {MAX_UNKNOWN_BYTES} bytes in fields that ONNX does not have")
        elif what in SCHEMA:
            if not isinstance(value, memoryview):
                raise IndexError(f"field {number} of {kind} is no message")
            _message(value, what, found, depth + 1, graphs)
        elif what != "bytes":
            raise _Refused(what)
        elif kind == "NodeProto" and number == 7:
            _domain(_text(value))
        elif kind == "StringStringEntryProto":
            entry[number] = _text(value) if depth == 1 else ""
    if kind == "StringStringEntryProto" and depth == 1:
        key = entry.get(1, "")
        if key in found.metadata:
            raise _Refused(f"its metadata hold {key[:80]!r} twice")
        found.metadata[key] = entry.get(2, "")


def _text(value: memoryview | int) -> str:
    if not isinstance(value, memoryview):
        raise IndexError("a text that is a number")
    return str(value, "utf-8")


def _domain(domain: str) -> None:
    if domain not in DOMAINS:
        names = ", ".join(sorted(repr(name) for name in DOMAINS))
        raise _Refused(
            f"an operator of the domain {domain[:80]!r}: none but onnxruntime's own run here ({names}). "
            "Express it with standard operators"
        )


def _tensor(data: memoryview) -> None:
    """Where its data are, and that it holds as many values as it declares."""
    dims: list[int] = []
    for number, wire, value in _fields(data, None):
        if number in (1, 14) and wire in (_FIXED32, _FIXED64):  # onnxruntime would not count it, we would
            raise IndexError(f"field {number} of TensorProto is no whole number")
        if number == 1:
            dims += _varints(value) if isinstance(value, memoryview) else [value]
            if len(dims) > MAX_RANK:
                raise _Refused(f"a tensor of more than {MAX_RANK} axes")
        elif number == 14 and value != 0:
            raise _Refused(_EXTERNAL)
    values = math.prod(dims)
    if values > _VALUES_A_BYTE * (len(data) + 1):
        raise _Refused(f"a tensor declares {dims} values and holds {len(data)} bytes")


def _fields(data: memoryview, found: OnnxFile | None) -> Iterator[tuple[int, int, memoryview | int]]:
    """Number, wire type and value of each field. Raises IndexError where the bytes end too early."""
    at, end = 0, len(data)
    while at < end:
        if found is not None:
            found.fields += 1
            if found.fields > MAX_FIELDS:
                raise _Refused(f"more than {MAX_FIELDS} fields")
        tag, at = _varint(data, at)
        number, wire = (tag & 0xFFFFFFFF) >> 3, tag & 7
        if wire == _BYTES:
            size, at = _varint(data, at)
            if size > end - at:
                raise IndexError(f"field {number} of {size} bytes, where {end - at} are left")
            yield number, wire, data[at : at + size]
            at += size
        elif wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
            if at > end:
                raise IndexError(f"field {number} ends behind the end")
            yield number, wire, 0
        else:
            raise IndexError(f"wire type {wire}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise IndexError("a number of more than ten bytes")


def _varints(data: memoryview) -> list[int]:
    """Numbers that lie packed: at most as many as a tensor has axes, and one."""
    found: list[int] = []
    at = 0
    while at < len(data) and len(found) <= MAX_RANK:
        value, at = _varint(data, at)
        found.append(value)
    return found
