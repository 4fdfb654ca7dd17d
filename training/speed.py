"""How many live streams a core carries: frames, model, head and rows as a worker runs them, without Redis.

    python -m training.speed pipeline/bundles/digits.onnx pipeline/bundles/commands.onnx
    python -m training.speed pipeline/bundles/*.onnx --json
    python -m training.speed --cells          every architecture, untrained: 2 x 128 units, 40 mel bands, 100 frames/s

Streams send chunks of 100 ms at their own pace; 64 of them share a step. A core's seconds are counted as the process's
CPU time, so that neighbours on the machine disturb little; the median of many rounds is told.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pipeline.batcher import Batcher
from pipeline.bundle import Bundle, from_bytes, load
from pipeline.manifest import InputSpec, Manifest, PowerFrontend, Provenance, ScoresHead
from training import augment
from training.graph import graph, model_spec, with_manifest
from training.models import CELLS, LogMel, Net, encoder

STREAMS = 64
CHUNK_S = 0.1


def speed(bundle: Bundle, streams: int = STREAMS, chunk_s: float = CHUNK_S, seconds: float = 2.0) -> dict[str, Any]:
    """Run `streams` streams of noise in chunks for `seconds` of CPU time; what came of it, by name.

    A chunk is at least a block: of a sensor that speaks once an hour, one has to be waited for.

    Returns:
        bundle, streams, chunk_ms, us_a_chunk (of one stream), live_streams_a_core (chunks' length by what they cost),
        model_state_bytes and row_bytes (a stream's carried state; with samples, counters and head, as it is stored),
        file_bytes, latency_ms (declared), block_ms (what a stream waits for until a step can be made).
    """
    manifest, rng = bundle.manifest, np.random.default_rng(0)
    rate_hz, block = manifest.input.sample_rate_hz, bundle.frontend.block * bundle.model.block
    length = max(round(chunk_s * rate_hz), block)
    batcher = Batcher(bundle, max_batch=streams)
    rows = np.repeat(np.array([batcher.layout.blank]), streams)
    noise = rng.standard_normal((4, streams, length, manifest.input.channels)).astype(np.float32) * 0.1
    chunks = (noise * 32767).astype(np.int16) if manifest.input.sample_type == "int16" else noise
    ends = np.zeros(streams, bool)
    costs: list[float] = []
    until = time.process_time() + seconds
    while len(costs) < 8 or time.process_time() < until:
        begun = time.process_time()
        batcher.run(rows, list(chunks[len(costs) % len(chunks)]), ends)
        costs.append(time.process_time() - begun)
    # Where a chunk is no whole number of blocks, calls differ in how many they run: means of a few calls each.
    size = max(1, len(costs) // 16)
    cost_s = statistics.median(statistics.fmean(costs[n : n + size]) for n in range(0, len(costs), size))
    return {
        "bundle": Path(bundle.source).stem,
        "streams": streams,
        "chunk_ms": 1000 * length / rate_hz,
        "us_a_chunk": 1e6 * cost_s / streams,
        "live_streams_a_core": int(streams * length / rate_hz / cost_s),
        "model_state_bytes": sum(state.row_bytes for state in manifest.model.states),
        "row_bytes": batcher.layout.dtype.itemsize,
        "file_bytes": bundle.size_bytes,
        "latency_ms": 1000 * manifest.model.latency / manifest.frame_rate_hz,
        "block_ms": 1000 * manifest.model.block / manifest.frame_rate_hz,
    }


def untrained(cell: str, layers: int = 2, hidden: int = 128, classes: int = 41) -> Bundle:
    """A net of an architecture on log-mel frames of 16 kHz, every 10 ms, its weights as training begins with them.

    Raises ConfigError: no such architecture.
    """
    front = LogMel(augment.filterbank(16_000, 400, 40))
    net = Net(front, encoder(cell, front.outputs, layers, hidden), classes).eval()
    manifest = Manifest(
        task=cell,
        labels=tuple(str(n) for n in range(classes)),
        licence="none: nothing was learnt",
        provenance=Provenance(recipe="training/speed.py", commit="", data_sha256="", created=""),
        input=InputSpec(sample_rate_hz=16_000),
        frontend=PowerFrontend(window_samples=400, hop_samples=160),
        model=model_spec(net),
        head=ScoresHead(),
    )
    return from_bytes(with_manifest(graph(net), manifest), cell)


def main(
    bundles: Annotated[list[Path] | None, typer.Argument(help="Bundles, side by side.")] = None,
    cells: Annotated[bool, typer.Option("--cells", help="Every architecture, untrained, at one size.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="CPU time for each.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="One list of records, for machines.")] = False,
) -> None:
    """Live streams a core of each bundle."""
    opened = [load(path) for path in bundles or []] + [untrained(cell) for cell in CELLS if cells]
    if not opened:
        raise typer.BadParameter("give bundles, or --cells")
    found = [speed(bundle, seconds=seconds) for bundle in opened]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    sizes = f"{'state bytes':>11} {'file bytes':>10}"
    typer.echo(f"{'bundle':16} {'us a chunk':>10} {'streams a core':>14} {sizes} {'latency ms':>10}")
    for row in found:
        cost = f"{row['us_a_chunk']:10.1f} {row['live_streams_a_core']:14}"
        sizes = f"{row['model_state_bytes']:11} {row['file_bytes']:10}"
        typer.echo(f"{row['bundle']:16} {cost} {sizes} {row['latency_ms']:10.0f}")


if __name__ == "__main__":
    typer.run(main)
