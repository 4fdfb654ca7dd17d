"""The command itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli import options
from pipeline.cli.console import emit, examples, out, say_error
from pipeline.cli.values import finite

if TYPE_CHECKING:
    from pipeline.bundle import Bundle
    from pipeline.cli.demo.report import Summary
    from pipeline.cli.demo.stage import Stage
    from pipeline.cli.playback import Recording
    from pipeline.output import Event

EXAMPLES = examples(
    ("statebelt demo", "a recording that comes with it: several voices say digits"),
    ("statebelt demo me.wav", "your own; with me.json beside it, it is checked"),
    ("statebelt demo calls/", "a folder: every recording is a stream, all at once"),
)

RECORDING = Path(__file__).resolve().parents[2] / "recordings" / "digits.flac"


def demo(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="INPUT", help="Recordings, or folders of them.", show_default="digits.flac"),
    ] = None,
    bundle: Annotated[str, typer.Option(help="A bundle's path, or the name of a shipped one.")] = "digits",
    chunk_ms: Annotated[float, typer.Option(min=1, callback=finite, help="Length of a chunk.")] = 100.0,
    url: Annotated[
        str | None, typer.Option(help="Use this Redis, and leave it as it was.", show_default="a server of its own")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """See it work: a server, a worker and a speaker; words appear as they are spoken.

    Exit status 0 only if what was said was recognised. What was said stands beside a recording, in a .json of its
    name: {"words": [{"word": "seven"}, ...]}. A recording without one counts once it was processed to its end.
    """
    from pipeline import recordings as files
    from pipeline.bundle import load
    from pipeline.cli.demo.stage import stage

    paths = files.find(inputs or [RECORDING])
    opened = load(bundle)
    recordings, unreadable = _read(paths, opened)
    if recordings:
        began_s = time.monotonic()
        with _starting(as_json) as started, stage(bundle, url) as running:
            summary = _perform(running, opened, recordings, chunk_ms, as_json, started, began_s)
        _tell(summary, as_json)
        if not summary.ok and not unreadable:
            raise typer.Exit(1)
    if unreadable:
        raise typer.Exit(2)


def _perform(
    running: Stage,
    bundle: Bundle,
    recordings: list[Recording],
    chunk_ms: float,
    as_json: bool,
    started: Callable[[], None],
    began_s: float,
) -> Summary:
    """Push, listen, show. Returns what it amounted to."""
    from pipeline.broker.connection import shown
    from pipeline.cli.demo.play import play
    from pipeline.cli.demo.report import summarise
    from pipeline.cli.playback import chunk_samples
    from pipeline.consumer import Consumer
    from pipeline.producer import Producer

    spec = bundle.manifest.input
    longest_s = max(len(recording.samples) for recording in recordings) / spec.sample_rate_hz
    producer = Producer(
        running.topic,
        url=running.url,
        sample_rate_hz=spec.sample_rate_hz,
        channels=spec.channels,
        sample_type=spec.sample_type,
        partitions=running.partitions,
    )
    with producer, Consumer(running.topic, running.group, url=running.url) as consumer:
        consumer.open()
        running.await_ready()
        started()
        ready_s = time.monotonic() - began_s
        if as_json:
            pids = {"worker": running.worker.pid, "server": running.server_pid}
            emit({"kind": "ready", "server": running.server, "url": shown(running.url), "pids": pids})
        else:
            out.print(
                f"[bold green]ready[/] in {ready_s:.1f} s: {running.server}, one worker with bundle "
                f"[bold]{escape(Path(bundle.source).name)}[/]\n"
                f"speaking [bold]{len(recordings)}[/] recording{'s' * (len(recordings) != 1)} at real-time pace, "
                f"{chunk_ms:g} ms a chunk, for {longest_s:.1f} s\n",
                highlight=False,
            )
        width = max(len(recording.stream) for recording in recordings)

        def on_word(stream: str, event: Event) -> None:
            if as_json:
                emit({"kind": "word", "stream": stream, **asdict(event)})
            else:
                out.print(_line(stream.ljust(width), event), highlight=False)

        with _bar(as_json, longest_s) as on_spoken:
            heard = play(
                running,
                producer,
                consumer,
                recordings,
                chunk_samples(chunk_ms, spec.sample_rate_hz),
                on_word=on_word,
                on_spoken=on_spoken,
            )
    return summarise(recordings, heard, chunk_ms, spec.sample_rate_hz)


def _line(stream: str, event: Event) -> str:
    sure = "green" if event.score >= 0.8 else "yellow"
    bar = "\u2588" * round(event.score * 10)
    return (
        f"  {event.start_s:7.2f} s  [cyan]{escape(stream)}[/]  [bold]{escape(event.label):10}[/] "
        f"[{sure}]{event.score:4.0%} {bar}[/]"
    )


def _tell(summary: Summary, as_json: bool) -> None:
    from pipeline.cli.demo.report import table

    if as_json:
        emit(summary.as_record())
        return
    out.print()
    out.print(table(summary))
    if not any(expected is not None for expected in summary.expected.values()):
        out.print("\n[bold green]done[/]: every stream was processed to its end")
    elif summary.ok:
        out.print("\n[bold green]all words recognised[/]")
    else:
        out.print("\n[bold red]not what was said[/]")


@contextmanager
def _starting(quiet: bool) -> Iterator[Callable[[], None]]:
    """Says that it takes a moment, until the function that it yields is called."""
    with ExitStack() as waiting:
        if not quiet:
            waiting.enter_context(out.status("starting a server and a worker"))
        yield waiting.close


@contextmanager
def _bar(quiet: bool, total_s: float) -> Iterator[Callable[[float], None]]:
    """How much has been spoken, below the words; nothing where nobody would see it move."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("  speaking"), BarColumn(), TextColumn("{task.completed:.1f} of {task.total:.1f} s"))
    with Progress(*columns, console=out, transient=True, disable=quiet or not out.is_terminal) as progress:
        job = progress.add_task("", total=total_s)
        yield lambda spoken_s: progress.update(job, completed=min(spoken_s, total_s))


def _read(paths: list[Path], bundle: Bundle) -> tuple[list[Recording], int]:
    """The readable ones; each of the others is reported and counted."""
    from pipeline import recordings
    from pipeline.cli.demo.report import truth
    from pipeline.cli.playback import Recording, stream_names
    from pipeline.errors import RecordingError

    found = []
    for path, name in zip(paths, stream_names(paths), strict=True):
        try:
            truth(path)  # a broken one is told before, not after
            found.append(Recording(name, path, recordings.read(path, bundle.manifest.input)))
        except RecordingError as error:
            say_error(str(error))
    return found, len(paths) - len(found)
