"""`statebelt adopt`: somebody's ONNX model to a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import options
from pipeline.cli.console import emit, examples, out, say_warning
from pipeline.cli.outfile import NewFile, identity
from pipeline.cli.values import finite

if TYPE_CHECKING:
    from pipeline.adopt.build import Adopted

EXAMPLES = examples(
    ("statebelt adopt --recipe silero-vad -o vad.onnx", "a known model, found in its installed wheel"),
    ("statebelt adopt my.onnx -o bundle.onnx --rate 16000 --window 400 --hop 160", "raw audio in windows of 25 ms"),
    ("statebelt adopt my.onnx -o bundle.onnx --rate 100", "the producer computes the frames, 100 a second"),
    ("statebelt adopt my.onnx -o bundle.onnx --recipe mine.toml", "what cannot be inferred, in a file"),
    ("statebelt verify bundle.onnx talk.wav", "then: does it stream correctly?"),
)


def adopt(
    model: Annotated[
        Path | None, typer.Argument(help="The .onnx file; not needed where the recipe knows an installed wheel.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle to write.")] = Path("bundle.onnx"),
    recipe: Annotated[
        str | None, typer.Option(help="What is known of the model: a .toml file, or the name of a shipped one.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=1e-6, callback=finite, help="Samples (or frames) a second.")] = None,
    channels: Annotated[int | None, typer.Option(min=1, help="Of a sample.", show_default="1, or the features")] = None,
    sample_type: Annotated[
        str | None, typer.Option(help="int16 or float32.", show_default="int16 for audio, float32 for frames")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Raw samples that one frame holds, context included.")
    ] = None,
    hop: Annotated[
        int | None, typer.Option(min=1, help="New samples of a frame.", show_default="the recipe's, or the window")
    ] = None,
    power: Annotated[bool, typer.Option("--power", help="Frames are power spectra of the windows.")] = False,
    signal: Annotated[str | None, typer.Option("--input", help="The input that takes the signal.")] = None,
    scores: Annotated[str | None, typer.Option("--scores", help="The output that holds the scores.")] = None,
    also: Annotated[list[str] | None, typer.Option(help="An output whose columns come behind the scores.")] = None,
    axes: Annotated[
        str | None, typer.Option(help="The input's axes, of B streams, T frames, F features and 1.")
    ] = None,
    features: Annotated[int | None, typer.Option(min=1, help="Features of a frame.")] = None,
    state: Annotated[
        list[str] | None, typer.Option(metavar="IN=OUT", help="An input and the output it goes on as.")
    ] = None,
    constant: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An input that is always the same number.")
    ] = None,
    given: Annotated[list[str] | None, typer.Option(help="An input that a producer gives once a stream.")] = None,
    labels: Annotated[str | None, typer.Option(help="Names of the scores' columns: a,b,c.")] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="What is made of the scores: scores (nothing), segments, keywords, overlap_add.",
            show_default="the recipe's, or scores",
        ),
    ] = None,
    block: Annotated[int | None, typer.Option(min=1, help="Frames that a call takes, or a multiple of it.")] = None,
    latency: Annotated[int | None, typer.Option(min=0, help="Frames by which scores trail their frame.")] = None,
    one_stream: Annotated[
        bool, typer.Option("--one-stream", help="A call for each stream, though the graph takes more.")
    ] = False,
    one_block: Annotated[
        bool, typer.Option("--one-block", help="A call for each block, though the graph takes more.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, callback=finite, help="How inexact it is between two cuts or batches: `statebelt verify`."),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="The model's licence.")] = None,
    as_json: options.Json = False,
) -> None:
    """Make a bundle of a model that you have.

    The graph tells its states, axes and scores; this prints what was found, and how. What it does not tell is asked
    for, by flag or in a TOML file with the sections of a manifest. The original stays as it is.
    """
    from pipeline.adopt.build import adopt as build
    from pipeline.adopt.recipe import locate, merged, read_recipe
    from pipeline.errors import ConfigError

    known = read_recipe(recipe) if recipe else {}
    own_rate = known.get("input", {}).get("sample_rate_hz")
    if rate is not None and own_rate is not None and rate != own_rate:
        # Its windows and constants are of that rate: the bundle would run, and hear something else.
        raise ConfigError(
            f"--rate {rate:g}: recipe {recipe!r} is for {own_rate} Hz. Leave --rate out; for a model of another rate "
            "write a recipe of your own"
        )
    said = {
        "input": {"sample_rate_hz": rate, "channels": channels, "sample_type": sample_type},
        "frontend": _frontend(window, hop, power, known),
        "model": {
            "input": signal,
            "output": scores,
            "also": also,
            "input_axes": axes,
            "features": features,
            "states": [dict(zip(("input", "output"), _pair(s, "--state"), strict=True)) for s in state or ()] or None,
            "constants": [_constant(text) for text in constant or ()] or None,
            "given": [{"input": name} for name in given or ()] or None,
            "block": block,
            "latency": latency,
            "one_stream": one_stream or None,
            "one_block": one_block or None,
            "tolerance": tolerance,
        },
        "labels": labels.split(",") if labels else None,
        "licence": licence,
    }
    wishes = merged(known, _without_none(said))
    if head is not None:  # a head's settings are its own: nothing of the recipe's stays
        wishes["head"] = {"kind": head}
    files = [model] if model is not None else None
    if files is None:
        if recipe is None:
            raise ConfigError("no model: give the .onnx file, or --recipe with the name of a known one")
        files = locate(known, recipe)
    if os.path.exists(output) and identity(output) in map(identity, files):
        raise ConfigError(f"{output} is the model itself, which stays as it is: name another -o")
    done = build(_bytes(files, known), str(files[0]), wishes)
    _write(output, done.model)
    if as_json:
        emit(
            {
                "bundle": str(output),
                "size_bytes": len(done.model),
                "findings": [dict(zip(("what", "value", "how"), line, strict=True)) for line in done.lines],
                "warnings": list(done.warnings),
                "manifest": done.bundle.manifest.model_dump(mode="json"),
            }
        )
        return
    _show(done, output)


def _show(done: Adopted, output: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="what was found", title_justify="left", box=None)
    for name in ("what", "value", "how it is known"):
        table.add_column(name, overflow="fold")
    for what, value, how in done.lines:
        table.add_row(f"[cyan]{escape(what)}[/]", escape(value), f"[dim]{escape(how)}[/]")
    out.print(table)
    for warning in done.warnings:
        say_warning(warning)
    out.print(
        f"\nwrote {output}, {len(done.model):,} bytes. Next: statebelt verify {output}", highlight=False, markup=False
    )


def _frontend(window: int | None, hop: int | None, power: bool, known: dict[str, Any]) -> dict[str, Any]:
    from pipeline.errors import ConfigError

    recipes = known.get("frontend", {})
    if window is None and not recipes and (hop is not None or power):
        raise ConfigError("--hop and --power need --window: how many samples does a frame hold?")
    said = {"kind": "power" if power else None, "window_samples": window, "hop_samples": hop}
    if window is not None and recipes.get("kind", "identity") == "identity":
        said = {"kind": "power" if power else "window", "window_samples": window, "hop_samples": hop or window}
    return said


def _pair(text: str, flag: str) -> tuple[str, str]:
    from pipeline.errors import ConfigError

    left, equals, right = text.partition("=")
    if not equals or not left or not right:
        raise ConfigError(f"{flag} {text!r}: expected two names with = between them")
    return left, right


def _constant(text: str) -> dict[str, Any]:
    from pipeline.errors import ConfigError

    name, value = _pair(text, "--constant")
    try:
        return {"input": name, "value": float(value)}
    except ValueError:
        raise ConfigError(f"--constant {text!r}: {value!r} is no number") from None


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    kept = {name: _without_none(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in kept.items() if value is not None and value != {}}


def _bytes(files: list[Path], known: dict[str, Any]) -> bytes:
    from pipeline.adopt.merge import merge
    from pipeline.bundle import read_model

    models = [read_model(file) for file in files]
    how = known.get("source", {}).get("merge")
    return merge(how, models) if how else models[0]


def _write(path: Path, model: bytes) -> None:
    """At once, or not at all."""
    from pipeline.errors import ConfigError

    try:
        with NewFile(path) as new:
            new.at.write_bytes(model)
            new.keep()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
