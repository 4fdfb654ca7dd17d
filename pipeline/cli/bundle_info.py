"""`statebelt inspect`: what is in a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options
from pipeline.cli.console import emit, examples, out

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.bundle import Bundle
    from pipeline.manifest import ModelSpec

EXAMPLES = examples(
    ("statebelt inspect digits", "the shipped bundle"),
    ("statebelt inspect my.onnx --json | jq .manifest.labels", "for machines"),
)


def inspect(
    bundle: Annotated[str, typer.Argument(help="A bundle's path, or the name of a shipped one.")],
    as_json: options.Json = False,
) -> None:
    """Show what is in a bundle.

    Its manifest, the state it carries, sizes, where it comes from, how good it was measured to be. Opening it
    checks it: what does not fit its own manifest is refused, with exit status 2.
    """
    from pipeline.batcher import Batcher
    from pipeline.bundle import load

    opened = load(bundle)
    row_bytes = Batcher(opened).layout.row_bytes
    if as_json:
        emit(
            {
                "bundle": opened.source,
                "size_bytes": opened.size_bytes,
                "fingerprint": opened.fingerprint.hex(),
                "row_bytes": row_bytes,
                "manifest": opened.manifest.model_dump(mode="json"),
            }
        )
    else:
        out.print(_about(opened, row_bytes))
        out.print(_states(opened))


def _about(bundle: Bundle, row_bytes: int) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from pipeline.verify import exactness

    manifest = bundle.manifest
    model, source = manifest.model, manifest.provenance
    ms = 1000 / manifest.frame_rate_hz
    table = Table(show_header=False, box=None, title=f"[bold]{escape(bundle.source)}[/]", title_justify="left")
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    rows = {
        "task": manifest.task,
        "labels": _shortened(manifest.labels),
        "licence": manifest.licence,
        "file": f"{bundle.size_bytes:,} bytes, fingerprint {bundle.fingerprint.hex()}",
        "input": f"{manifest.input.sample_rate_hz:g} Hz{', or any other' * manifest.input.any_rate}, "
        f"{manifest.input.channels} x {manifest.input.sample_type}",
        "frontend": _fields(manifest.frontend.model_dump()),
        "frames": f"one every {_length(ms)}, {model.features} features to {model.classes} classes",
        "model": f"block {model.block} frames, latency {model.latency} frames ({_length(model.latency * ms)}), "
        f"{model.tail_frames} frames of silence at the end",
        "calls": _calls(manifest.model),
        "inputs": ", ".join(
            [f"{c.input} is always {c.value:g}" for c in model.constants]
            + [f"{g.input} {list(g.row_shape)} is given once a stream" for g in model.given]
        ),
        "exactness": exactness(manifest) or "exact, it says: `statebelt verify` sees whether it is",
        "head": _fields(manifest.head.model_dump()),
        "row": f"{row_bytes:,} bytes: the whole state of one stream, and its checkpoint",
        "made by": f"{source.recipe}, commit {source.commit}, {source.created}",
        "data": f"sha256 {source.data_sha256}",
        "scores": _fields(source.scores) or "none",
        "note": source.note,
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    return table


def _shortened(labels: tuple[str, ...], most: int = 64) -> str:
    """All of them, or of very many the first and how many there are; --json has all."""
    told = ", ".join(labels[:most])
    return told if len(labels) <= most else f"{told}, ... ({len(labels)} in all)"


def _length(ms: float) -> str:
    """Of time, in a unit that people use for as much.

    >>> _length(20), _length(3_600_000)
    ('20 ms', '3600 s')
    """
    return f"{ms:g} ms" if ms < 10_000 else f"{ms / 1000:g} s"


def _calls(model: ModelSpec) -> str:
    """How much of what a call of the graph takes."""
    streams = "one stream (slower: nothing is shared)" if model.streams_a_call else "any number of streams"
    blocks = "one block" if model.blocks_a_call else "any number of blocks"
    return f"{streams}, {blocks}"


def _fields(values: dict[str, object] | dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _states(bundle: Bundle) -> Table:
    from math import prod

    import numpy as np
    from rich.table import Table

    table = Table(title="state carried between steps, for one stream", title_justify="left")
    for name in ("input", "output", "shape", "batch axis", "type", "begins as", "bytes"):
        table.add_column(name)
    for state in bundle.manifest.model.states:
        size = prod(state.shape) * np.dtype(state.dtype).itemsize
        row = (state.input, state.output, str(list(state.shape)), state.batch_axis, state.dtype, state.initial, size)
        table.add_row(*map(str, row))
    return table
