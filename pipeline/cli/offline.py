"""`statebelt run`: a bundle over recordings, without Redis."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import interrupt, options
from pipeline.cli.console import emit, examples, out, say_error, say_warning
from pipeline.cli.outfile import NewFile, check_spared
from pipeline.cli.values import Columns, Given, finite, read_columns, read_given

if TYPE_CHECKING:
    from pipeline.component import Array

EXAMPLES = examples(
    ("statebelt run digits talk.wav", "what is said in it"),
    ("statebelt run digits calls/ --json", 'one line a file: {"file","seconds","events":[...]}'),
    ("statebelt run digits talk.wav --chunk-ms 20", "in chunks: the same bytes"),
    ("statebelt run digits a.wav b.wav --scores s.npz", 'np.load("s.npz")["a.wav"] is [T, C]'),
    ("statebelt run activity walk.npz", "sensors: an archive's first float array [N, C], at the bundle's rate"),
    ("statebelt run forecast hours.csv", "what comes after its last row"),
    ("statebelt run anomaly plant.csv --columns flow,pressure", "columns of a .csv file, in the channels' order"),
    ("statebelt run denoiser.onnx noisy.wav --wav clean.wav", "the audio that a denoiser makes of it"),
)


def run(
    bundle: Annotated[str, typer.Argument(help="A bundle's path, or the name of a shipped one.")],
    files: Annotated[list[Path], typer.Argument(help="Recordings, or folders of them.")],
    chunk_ms: Annotated[
        float | None,
        typer.Option(
            min=0.01, callback=finite, help="Feed it in chunks of this length.", show_default="the whole file at once"
        ),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Write every file's frame scores, under its path, to this .npz file.")
    ] = None,
    wav: Annotated[
        Path | None,
        typer.Option(
            help="Write the audio that the bundle makes of a recording to this .wav file; of several, into this folder."
        ),
    ] = None,
    columns: Columns = None,
    given: Given = None,
    as_json: options.Json = False,
) -> None:
    """Run a bundle over recordings without Redis: the same components, the same bytes.

    Of a bundle that forecasts, the last forecast is shown; --scores has them all.

    A file that cannot be read is reported, the others go on, and the exit status is 2.
    """
    from dataclasses import asdict

    from rich.markup import escape

    from pipeline import recordings
    from pipeline.bundle import load
    from pipeline.cli.forecasts import last_forecast, table
    from pipeline.cli.playback import chunk_samples
    from pipeline.cli.wav import WavFile, places
    from pipeline.errors import ConfigError, RecordingError
    from pipeline.offline import run as run_one
    from pipeline.verify import exactness

    opened, values, chosen = load(bundle), read_given(given), read_columns(columns)
    if odd := exactness(opened.manifest):
        say_warning(odd)
    spec = opened.manifest.input
    if wav is not None and not opened.head.publishes_samples:
        raise ConfigError(f"--wav: {opened.source} makes no audio: its head is {opened.manifest.head.kind!r}")
    paths = recordings.find(files)
    if scores is not None:
        check_spared("--scores", scores, "recording", paths)
        check_spared("--scores", scores, "bundle", [Path(opened.source)])
        check_spared("--scores", scores, "values of --given", [given] if given else [])
    targets = [None] * len(paths) if wav is None else places(wav, files, paths, spec.sample_rate_hz)
    failed = False
    with _score_file(scores) as keep:
        for path, target in zip(paths, targets, strict=True):
            interrupt.check()
            try:
                samples, rate_hz = recordings.read_with_rate(path, spec, chosen, say_warning)
                step = None if chunk_ms is None else chunk_samples(chunk_ms, rate_hz)
                done = run_one(opened, samples, chunk_samples=step, given=values, rate_hz=rate_hz)
                if target is not None and done.samples is not None:
                    with WavFile(target, spec.sample_rate_hz) as file:
                        file.write(done.samples)
            except (RecordingError, ConfigError) as error:
                say_error(str(error) if str(path) in str(error) else f"{path}: {error}")
                failed = True
                continue
            if keep is not None:
                with _telling(scores):
                    _add(keep, str(path), done.scores)
            told = last_forecast(opened.manifest, done)
            if as_json:
                events = [asdict(event) for event in done.events]
                made: dict[str, object] = {} if done.samples is None else {"samples": len(done.samples)}
                made |= {} if told is None else {"forecast": told._asdict()}
                emit({"file": str(path), "seconds": done.seconds, "events": events, **made})
                continue
            made_of_it = f"  {len(done.samples)} samples" if done.samples is not None else ""
            out.print(f"[cyan]{escape(str(path))}[/]  {done.seconds:.2f} s{made_of_it}", highlight=False)
            if told is not None:
                out.print(table(told))
            for event in done.events if told is None else ():
                span = f"{event.start_s:8.2f} - {event.end_s:7.2f} s"
                out.print(f"{span}  [bold]{escape(event.label)}[/]  {event.score:.2f}", highlight=False)
    if failed:
        raise typer.Exit(2)


@contextmanager
def _score_file(path: Path | None) -> Iterator[zipfile.ZipFile | None]:
    """The archive of --scores. It takes its place at the end, and only if there is something in it."""
    if path is None:
        yield None
        return
    with NewFile(path) as new:
        with _telling(path):
            archive = zipfile.ZipFile(new.at, "w", zipfile.ZIP_STORED)
        try:
            yield archive
        finally:
            with _telling(path):
                archive.close()
        if archive.namelist():
            with _telling(path):
                new.keep()


@contextmanager
def _telling(path: object) -> Iterator[None]:
    """Only around what writes scores: an OSError of standard output is told elsewhere."""
    from pipeline.errors import ConfigError

    try:
        yield
    except OSError as error:
        raise ConfigError(f"--scores {path}: cannot be written: {error.strerror}") from None


def _add(archive: zipfile.ZipFile, name: str, scores: Array) -> None:
    """One array, as `np.load(archive)[name]` finds it. (`np.savez` takes no array named `file`.)"""
    import numpy as np

    member = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed: equal scores make equal bytes
    if member.filename in archive.NameToInfo:
        return  # the same file, given twice
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(scores), allow_pickle=False)
