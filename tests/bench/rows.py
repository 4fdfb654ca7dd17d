"""What storing rows costs, by the size of the row, with every commit and with every k-th chunk.

    python -m tests.bench.rows

A backlog of 64 streams is drained with one worker, model by model, interval by interval, in turns. CPU of worker and
server a 100 ms chunk; medians, least and largest. A sample of the streams is compared with the whole run, byte for
byte. Random weights: what a row costs does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.bundle import load
from pipeline.manifest import InputSpec, Manifest, PowerFrontend, Provenance, ScoresHead
from tests.bench import contest, runner, yardstick
from tests.bench.subject import Subject
from training import augment
from training.graph import graph, model_spec, with_manifest
from training.models import LogMel, Net, encoder

MODELS: dict[str, tuple[str, int, int, dict[str, int]]] = {
    "LSTM 2 x 128": ("lstm", 2, 128, {}),
    "LSTM 2 x 256": ("lstm", 2, 256, {}),
    "LSTM 3 x 512": ("lstm", 3, 512, {}),
    "attention 2 x 96, 64 frames": ("attention", 2, 96, {"heads": 4, "window_frames": 64}),
}
STREAMS, WARM_TURNS = 64, 2


def write(folder: Path) -> dict[str, Path]:
    """A bundle of each model, for 16 kHz audio, with the scores head."""
    files = {}
    for name, (cell, layers, hidden, options) in MODELS.items():
        front = LogMel(augment.filterbank(yardstick.RATE_HZ, yardstick.WINDOW, yardstick.MELS), floor=yardstick.FLOOR)
        net = Net(front, encoder(cell, front.outputs, layers, hidden, **options), yardstick.CLASSES).eval()
        manifest = Manifest(
            task=name,
            labels=tuple(f"class_{n}" for n in range(yardstick.CLASSES)),
            licence="Apache-2.0",
            provenance=Provenance(recipe="tests/bench/rows.py", commit="none", data_sha256="none", created="never"),
            input=InputSpec(sample_rate_hz=yardstick.RATE_HZ),
            frontend=PowerFrontend(window_samples=yardstick.WINDOW, hop_samples=yardstick.HOP),
            model=model_spec(net),
            head=ScoresHead(),
        )
        files[name] = folder / f"{len(files)}.onnx"
        files[name].write_bytes(with_manifest(graph(net), manifest))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench.rows")
    parser.add_argument("--every", type=int, nargs="+", default=[1, 4, 16], help="chunks between two commits of a row")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--chunks", type=int, default=48, help="of each stream, a turn")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/rows.json"))
    given = parser.parse_args()
    found: dict[str, dict[int, list[dict[str, float]]]] = {name: {k: [] for k in given.every} for name in MODELS}
    row_bytes = {}
    with runner.ground() as ground:
        files = write(ground.folder)
        for _ in range(given.turns):
            for name, path in files.items():
                row_bytes[name] = _row_bytes(path)
                for k in given.every:
                    subject = Subject("statebelt", "belt", path, settings={"row_every_chunks": k})
                    with contest.match(ground, subject) as running:
                        running.drain(STREAMS, WARM_TURNS)
                        found[name][k].append(running.drain(STREAMS, given.chunks))
    table = Table("model", "row", *(f"every {k}: worker, server us" for k in given.every), title="A 100 ms chunk")
    for name, by_k in found.items():
        cells = []
        for results in by_k.values():
            us = sorted(result["us"] for result in results)
            server = statistics.median(result["server_us"] for result in results)
            cells.append(f"{statistics.median(us):.0f} ({us[0]:.0f}-{us[-1]:.0f}), {server:.0f}")
        table.add_row(name, f"{row_bytes[name] / 1e3:.1f} KB", *cells)
    Console().print(table)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"row_bytes": row_bytes, "found": found}, indent=1))


def _row_bytes(path: Path) -> int:
    from pipeline.batcher import Batcher

    return Batcher(load(path)).layout.row_bytes


if __name__ == "__main__":
    main()
