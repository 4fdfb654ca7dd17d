"""See what a model remembers: one recording, and everything that went on in the bundle while it was heard.

    python -m training.inspect me.wav                    the digits bundle, its last layer, eight units
    python -m training.inspect walk.csv --bundle activity --chunk-ms 500
    python -m training.inspect me.wav --layer 0 --units 3,17,40 -o memory.png
    make inspect FILE=me.wav BUNDLE=commands

Aligned pictures, one above the other: waveform with the events, log-mel bands (or the sensors), gates, cell state and
hidden state of chosen units, scores, and how far back the last answer depends on what was heard: the norm of its
gradient at every frame. The recording is run by onnxruntime in chunks, whose borders are drawn; the gates are
recomputed from the weights in the file (`training.unrolled`), and it is said by how much the two differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import recordings
from pipeline.bundle import SHIPPED, load
from pipeline.errors import ConfigError, StatebeltError
from training import data
from training.observed import liveliest, observe, read_model
from training.observed_plots import View, draw

MOST_APART = 1e-4
"""A picture of gates that do not explain onnxruntime's scores would be a picture of something else."""


def numbers(units: str, hidden: int) -> list[int]:
    """`"3,17"` to numbers. Raises ConfigError: no numbers, or none of the layer's."""
    try:
        found = [int(part) for part in units.split(",")]
    except ValueError:
        raise ConfigError(f"--units {units!r}: numbers, separated by commas") from None
    if not all(0 <= unit < hidden for unit in found):
        raise ConfigError(f"--units {units!r}: the layer's are 0 to {hidden - 1}")
    return found


def view(
    file: Path,
    bundle: str,
    chunk_ms: float = 100.0,
    layer: int = -1,
    units: str = "",
    count: int = 8,
    columns: str = "",
) -> tuple[View, float]:
    """(what `draw` draws, the largest difference between onnxruntime's scores and those recomputed).

    Raises:
        StatebeltError: the recording or the bundle cannot be read.
        ConfigError: no such layer or units; an operator that is not known; scores that differ.
    """
    opened = load(bundle)
    path = Path(bundle) if Path(bundle).suffix else SHIPPED / f"{bundle}.onnx"
    spec = opened.manifest.input
    chosen = tuple(columns.split(",")) if columns else None
    samples, rate_hz = recordings.read_with_rate(file, spec, chosen)
    chunk_samples = max(1, round(chunk_ms * rate_hz / 1000))
    seen = observe(opened, read_model(opened, path), samples, chunk_samples, rate_hz)
    if seen.apart > MOST_APART:
        raise ConfigError(f"recomputed scores are {seen.apart:.1e} from onnxruntime's: these are not its gates")
    places = range(len(seen.layers))
    if seen.layers and layer not in [*places, *(-1 - n for n in places)]:
        raise ConfigError(f"--layer {layer}: there are {len(seen.layers)} recurrent layers, from 0 on")
    which: list[int] = []
    if seen.layers:
        kind, parts = seen.layers[layer]
        which = numbers(units, parts["hidden"].shape[1]) if units else liveliest(kind, parts, count)
    title = f"{file.name} through {opened.source.rsplit('/')[-1]}"
    number = layer % len(seen.layers) if seen.layers else 0
    return View(seen, opened.manifest, chunk_samples, number, which, title), seen.apart


def main(
    file: Annotated[Path, typer.Argument(help="A recording: sound, or sensors as .csv, .tsv, .npz.")],
    bundle: Annotated[str, typer.Option(help="A shipped bundle's name, or a path.")] = "digits",
    chunk_ms: Annotated[float, typer.Option(help="Length of the chunks that it is run in.", min=0.001)] = 100.0,
    layer: Annotated[int, typer.Option(help="The recurrent layer whose units are drawn; -1: the last.")] = -1,
    units: Annotated[str, typer.Option(help="Units by number, as 3,17,40; else those whose memory varies most.")] = "",
    count: Annotated[int, typer.Option(help="How many units, where none are named.", min=1, max=64)] = 8,
    columns: Annotated[str, typer.Option(help="Of a table, in the channels' order, as name,name.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture.")] = data.RUNS / "inspect.png",
) -> None:
    """Draw what a bundle's model remembers of a recording."""
    try:
        seen, apart = view(file, bundle, chunk_ms, layer, units, count, columns)
        figure = draw(seen)
    except StatebeltError as error:
        raise SystemExit(f"refused: {error}") from None
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    told = f"{len(seen.observed.events)} events, units {', '.join(map(str, seen.units)) or 'none'}"
    print(f"{output}: {told}; recomputed scores at most {apart:.1e} from onnxruntime's")


if __name__ == "__main__":
    typer.run(main)
