"""A bundle in int8: smaller, often faster, and no longer exact; what that costs is measured and stated.

    python -m training.quantise pipeline/bundles/commands.onnx -o runs/commands-int8.onnx
    python -m training.quantise ... --recording talk.wav      measured with what the model is made for
    python -m training.quantise ... --exact                   a stream and a block a call: exact again, and slow

Weights become uint8, one scale an output; what they are multiplied with is quantised as it comes, by its own range
*within the call* (dynamic quantisation). So a score depends a little on who shares the batch and on how the stream is
cut: `tolerance` in the manifest is what `statebelt verify` finds, doubled and rounded up. uint8 and not int8, because
onnxruntime's kernels for int8 weights saturate on machines with AVX2 alone; an LSTM's, of which it has an int8 form
only, are kept to seven bits.

What stays in float32: the front (mel filterbank, DCT), whose powers span more than 8 bits can tell; the fold; products
of two things that vary (attention's keys and queries); GRU and RNN, of which onnxruntime has no int8 form.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline import recordings
from pipeline.bundle import Bundle, from_bytes, load
from pipeline.errors import ManifestError
from pipeline.manifest import Manifest
from pipeline.verify import verify
from pipeline.verify.verdict import rounded_up
from training.graph import with_manifest
from training.speed import speed

FRONT = ("mel", "dct", "fold")
"""Constants whose products stay in float32."""

HEADROOM = 2.0
"""Signals that were not tried may differ by more than those that were."""

KEPT = ("RNN", "GRU")


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the weights of its MatMul and LSTM operators in uint8; metadata are dropped."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _own_weights(copy.graph)
    for n, node in enumerate(copy.graph.node):
        node.name = f"{node.op_type}_{n}"  # onnxruntime's tool knows operators by name
    left_out = [node.name for node in copy.graph.node if any(name.startswith(FRONT) for name in node.input)]
    with tempfile.TemporaryDirectory() as folder:
        whole, prepared, first, made = (
            Path(folder) / f"{name}.onnx" for name in ("whole", "prepared", "first", "made")
        )
        onnx.save(copy, whole)
        # Infers shapes; without it the tool warns. Nothing is to be optimised: onnxruntime does so when it loads.
        quant_pre_process(whole, prepared, skip_optimization=True, skip_symbolic_shape=True)
        # Weights of an LSTM become int8, whatever is asked for: in seven bits nothing saturates.
        quantize_dynamic(prepared, first, op_types_to_quantize=["LSTM"], per_channel=True, reduce_range=True)
        quantize_dynamic(first, made, weight_type=QuantType.QUInt8, per_channel=True, nodes_to_exclude=left_out)
        found = onnx.load(made)
    del found.metadata_props[:]
    return found


def _own_weights(graph: onnx.GraphProto) -> None:
    """Each LSTM its own copy of its weights: the tool transposes them in place, once for each that uses them, and a
    bidirectional net came out as noise."""
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    used: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type != "LSTM":
            continue
        for place in (1, 2):
            name = node.input[place]
            used[name] += 1
            if used[name] > 1:
                tensor = graph.initializer.add()
                tensor.CopyFrom(arrays[name])
                tensor.name = node.input[place] = f"{name}_again_{used[name]}"


def variant(
    source: bytes,
    *,
    name: str = "bundle",
    recording: NDArray[Any] | None = None,
    exact: bool = False,
    streams: int = 64,
) -> tuple[bytes, Bundle]:
    """A float32 bundle's bytes to an int8 bundle's, and that bundle opened.

    Args:
        recording: `[N, channels]` to measure the tolerance with; None: random signals.
        exact: take one stream and one block a call, instead of a tolerance.
        streams: how many share batches when the tolerance is measured.
    Raises:
        ManifestError: it is no bundle, or its int8 form does not run or is off by more than the scores span.
    """
    told = from_bytes(source, name).manifest
    note = (
        f"int8 by dynamic quantisation of {name}, sha256 {hashlib.sha256(source).hexdigest()[:16]}; its scores were "
        f"measured in float32, and do not hold for this one. {told.provenance.note}"
    )[:2000]
    model = told.model.model_copy(update={"one_stream": True, "one_block": True} if exact else {})
    values = told.model_copy(
        update={"model": model, "provenance": told.provenance.model_copy(update={"scores": {}, "note": note})}
    ).model_dump()
    graph = quantised(onnx.load_from_string(source))
    manifest = Manifest.from_values(values, name)
    made = with_manifest(graph, manifest)
    opened = from_bytes(made, f"{name} in int8")
    checks = list(verify(opened, recording, streams=streams, tolerance=math.inf))
    if failed := [f"{check.name}: {check.note}" for check in checks if check.verdict == "failed"]:
        raise ManifestError(f"{name} in int8 does not run: {'; '.join(failed)}")
    measured = max(check.difference for check in checks)
    if measured == 0.0:
        return made, opened
    values["model"]["tolerance"] = rounded_up(HEADROOM * measured)
    made = with_manifest(graph, Manifest.from_values(values, name))
    return made, from_bytes(made, f"{name} in int8")


def compared(
    before: Bundle, after: Bundle, recording: NDArray[Any] | None = None, seconds: float = 2.0
) -> dict[str, Any]:
    """Both side by side, by name: bytes, live streams a core, and how far their scores lie apart on one signal."""
    spec, rng = before.manifest.input, np.random.default_rng(0)
    if recording is None:
        length = 400 * before.frontend.block * before.model.block
        recording = rng.standard_normal((length, spec.channels)).astype(np.float32) * 0.1
        recording = (recording * 32767).astype(np.int16) if spec.sample_type == "int16" else recording
    one, two = (bundle.forward(recording).scores for bundle in (before, after))
    return {
        "file_bytes": [before.size_bytes, after.size_bytes],
        "live_streams_a_core": [speed(bundle, seconds=seconds)["live_streams_a_core"] for bundle in (before, after)],
        "largest_difference": float(np.abs(one - two).max()),
        "span": float(np.ptp(one, axis=0).max()),
        "same_best_class": float((one.argmax(axis=1) == two.argmax(axis=1)).mean()),
        "tolerance": after.manifest.model.tolerance,
        "depends_on_batch": after.manifest.model.tolerance > 0,
    }


def main(
    bundle: Annotated[Path, typer.Argument(help="A float32 bundle.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The int8 bundle to write.")],
    recording: Annotated[Path | None, typer.Option(help="Sound or a table to measure the tolerance with.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="One stream and one block a call.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="CPU time to measure each one's speed.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="A record for machines.")] = False,
) -> None:
    """Write a bundle in int8, and tell what it costs and what it brings."""
    try:
        before = load(bundle)
        heard = None if recording is None else recordings.read(recording, before.manifest.input)
        made, after = variant(bundle.read_bytes(), name=bundle.name, recording=heard, exact=exact)
    except ManifestError as error:
        raise SystemExit(f"refused: {error}") from None
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(made)
    record = {"float32": str(bundle), "int8": str(output), **compared(before, after, heard, seconds)}
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    kept = Counter(node.op_type for node in onnx.load_from_string(made).graph.node if node.op_type in KEPT)
    for name, value in record.items():
        typer.echo(f"{name:20} {value}")
    for kind, count in kept.items():
        typer.echo(f"{count} {kind} operators stayed in float32: onnxruntime has no int8 form of them")


if __name__ == "__main__":
    typer.run(main)
