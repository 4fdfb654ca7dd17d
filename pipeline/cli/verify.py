"""`statebelt verify`: does a bundle keep the promise?"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options
from pipeline.cli.console import emit, err, examples, out, say_warning
from pipeline.cli.values import Columns, finite, read_columns

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.verify import Check

EXAMPLES = examples(
    ("statebelt verify vad.onnx", "with random signals"),
    ("statebelt verify vad.onnx talk.wav", "with what the model is made for"),
    ("statebelt verify activity walk.npz", "of sensors too"),
    ("statebelt verify vad.onnx talk.wav --tolerance 1e-4", "is it exact within that?"),
    ("statebelt verify vad.onnx --json | jq -r 'select(.verdict != \"exact\") | .check'", "for machines"),
)


def verify(
    bundle: Annotated[str, typer.Argument(help="A bundle's path, or the name of a shipped one.")],
    audio: Annotated[
        Path | None, typer.Argument(help="A recording to cut all signals from.", show_default="random signals")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            help="The largest difference of a score allowed.",
            show_default="as the manifest states",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0, callback=finite, help="Length of a stream.", show_default="some hundred frames"),
    ] = None,
    streams: Annotated[int, typer.Option(min=2, max=1024, help="How many share batches.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of signals, cuts and company.")] = 0,
    columns: Columns = None,
    as_json: options.Json = False,
) -> None:
    """Check on any bundle that streams yield what whole signals yield.

    Whatever the cuts, the company, the crashes: every check tells `exact`, or the largest difference and where. The
    exit status is 0 if all are exact, or within the tolerance that the manifest states; else 1, and what to do.
    """
    from pipeline import recordings
    from pipeline.bundle import load
    from pipeline.verify import conclusion
    from pipeline.verify import verify as run

    opened = load(bundle)
    recording = (
        None if audio is None else recordings.read(audio, opened.manifest.input, read_columns(columns), say_warning)
    )
    allowed = opened.manifest.model.tolerance if tolerance is None else tolerance
    checks = []
    with err.status("verifying") as status:
        for check in run(opened, recording, seconds=seconds, streams=streams, seed=seed, tolerance=allowed):
            checks.append(check)
            status.update(f"verified: {check.name}")
            if as_json:
                emit(_record(check))
    if not as_json:
        out.print(_table(checks))
    for check in checks:
        if check.note and check.verdict != "failed":
            say_warning(f"{check.name}: {check.note}")
    (err if as_json else out).print(conclusion(checks, allowed), soft_wrap=True, markup=False, highlight=False)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _record(check: Check) -> dict[str, object]:
    record = asdict(check)
    where = None if check.where is None else check.where._asdict()
    # JSON has no infinity: null, where one run yielded more frames than the other.
    difference = check.difference if math.isfinite(check.difference) else None
    return {"check": record.pop("name")} | record | {"difference": difference, "where": where}


def _table(checks: list[Check]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from pipeline.verify import CHECKS

    table = Table(box=None)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("")
    colours = {"exact": "green", "within tolerance": "yellow"}
    for check in checks:
        colour = colours.get(check.verdict, "red")
        found = f"[dim]{CHECKS[check.name][0]}[/]" if check.verdict == "exact" else escape(_found(check))
        table.add_row(f"[cyan]{check.name}[/]", f"[{colour}]{check.verdict}[/]", found)
    return table


def _found(check: Check) -> str:
    """How large, and where."""
    if check.verdict == "failed":
        return check.note
    size = f"{check.difference:.2g}" if math.isfinite(check.difference) else "other lengths"
    events = "" if check.events_same else "; events differ"
    if check.where is None:
        return size + events
    at = check.where
    return f"{size}: {at.what}, stream {at.stream}, frame {at.frame} ({at.time_s:.2f} s), {at.column}{events}"
