"""A foreign model to a bundle: inferred, folded, made quicker where its bits allow, its manifest written in."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pipeline.adopt.graph import open_graph
from pipeline.adopt.infer import Wishes, infer
from pipeline.adopt.quicker import quicker
from pipeline.bundle import MAX_BUNDLE_BYTES, Bundle, from_bytes
from pipeline.errors import ManifestError
from pipeline.manifest import METADATA_KEY, Manifest
from pipeline.model import fold

LARGE_BYTES = 256 << 20
"""From here on a person is told what so large a model costs."""


@dataclass(frozen=True)
class Adopted:
    """A bundle and how it came about.

    lines: what was found, and how it is known: (what, value, how). warnings: what a person should hear.
    """

    model: bytes
    bundle: Bundle
    lines: Sequence[tuple[str, str, str]]
    warnings: Sequence[str]


def adopt(model: bytes, source: str, wishes: Wishes) -> Adopted:
    """Make a model a bundle.

    Args:
        model: the `.onnx` file's bytes.
        source: its name, for messages.
        wishes: what its owner says, as sections of a manifest; the rest is inferred.
    Raises:
        ManifestError: it has no state, cannot be described, needs more said, or does not run.
    """
    if len(model) > MAX_BUNDLE_BYTES:
        raise ManifestError(
            f"{source}: {len(model)} bytes; a bundle has at most {MAX_BUNDLE_BYTES}. Use a smaller model"
        )
    about = infer(open_graph(model, source), wishes)
    values = _manifest(model, source, wishes, about.model)
    manifest = Manifest.from_values(values, source)
    graph = fold(model, source)
    folded = with_metadata(graph, METADATA_KEY, manifest.to_json())
    bundle = from_bytes(folded, source)
    warnings = []
    if len(folded) > LARGE_BYTES:
        warnings.append(
            f"{len(folded) / 1e6:,.0f} MB: every worker process holds them, and several times as much while it loads"
        )
    if (quick := quicker(bundle, graph, about)) is not None:
        folded = with_metadata(quick, METADATA_KEY, manifest.to_json())
        bundle = from_bytes(folded, source)
    if manifest.model.given:
        names = ", ".join(spec.input for spec in manifest.model.given)
        warnings.append(f"a stream to which nobody gives {names} runs with zeros there (Producer.give)")
    return Adopted(folded, bundle, about.lines, warnings)


def _manifest(model: bytes, source: str, wishes: Wishes, spec: dict[str, Any]) -> dict[str, Any]:
    """What was said and found, completed by what is usual."""
    head = wishes.get("head", {"kind": "scores"})
    frontend = wishes.get("frontend", {"kind": "identity"})
    signal = {"sample_type": "float32" if frontend["kind"] == "identity" else "int16", **wishes.get("input", {})}
    if frontend["kind"] == "identity":
        signal.setdefault("channels", spec["features"])
    if "sample_rate_hz" not in signal:
        raise ManifestError(f"{source}: at which rate are the model's samples, or frames? Say it (--rate HZ)")
    labels = wishes.get("labels", () if head.get("kind") == "overlap_add" else None)
    if labels is None:
        labels = (
            [head.get("label", "speech")] if spec["classes"] == 1 else [f"class_{n}" for n in range(spec["classes"])]
        )
    provenance = {
        "recipe": f"adopted from {PurePath(source).name}"[:2000],
        "commit": "",
        "data_sha256": "",
        "created": datetime.date.today().isoformat(),
        "note": f"sha256 of the original: {hashlib.sha256(model).hexdigest()}",
        **wishes.get("provenance", {}),
    }
    return {
        "task": wishes.get("task", PurePath(source).name[:2000]),
        "labels": labels,
        "licence": wishes.get("licence", "not stated"),
        "provenance": provenance,
        "input": signal,
        "frontend": frontend,
        "model": spec,
        "head": head,
    }


def with_metadata(model: bytes, key: str, value: str) -> bytes:
    """The model with one more entry of metadata.

    Protobuf lets a repeated field's items stand anywhere in a message: appended bytes add one, and nothing else of the
    file is touched. `metadata_props` is field 14 of ModelProto, an entry's key and value its fields 1 and 2.
    """
    entry = _field(1, key.encode()) + _field(2, value.encode())
    return model + _field(14, entry)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
