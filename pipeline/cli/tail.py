"""`statebelt tail`: results as they come."""

from __future__ import annotations

import time
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli import interrupt, options
from pipeline.cli.console import emit, examples, out, say_error, say_warning
from pipeline.cli.plain import counted
from pipeline.cli.values import finite

if TYPE_CHECKING:
    from pipeline.broker.topic import Topic
    from pipeline.cli.wav import WavFile
    from pipeline.component import Array
    from pipeline.consumer import Consumer, Result

EXAMPLES = examples(
    ("statebelt tail", "every stream, from now on"),
    ("statebelt tail --stream talk --from-beginning --until-end", "one stream, whole, then exit"),
    ("statebelt tail --json | jq -c '.events[]'", "for machines"),
    ("statebelt tail --stream talk --from-beginning --wav clean.wav", "a denoised stream as a file, as it comes"),
)

_AWAY_S = 0.5
_VALUES = 6
"""Of the last frame's scores, shown."""


def tail(
    topic: options.Topic = None,
    group: options.Group = None,
    stream: Annotated[
        str | None, typer.Option(help="Only this stream.", show_default="all streams of the topic")
    ] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="From the oldest result kept.")] = False,
    until_end: Annotated[
        bool,
        typer.Option(
            "--until-end", help="Exit when the named stream has ended; status 1 if --seconds are over before."
        ),
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Exit after so long.", show_default="run until Ctrl-C")
    ] = None,
    wav: Annotated[
        Path | None,
        typer.Option(
            help="Write the named stream's audio to this .wav file, until its end (of a bundle that makes some)."
        ),
    ] = None,
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """Show results as they come.

    One line each: when in its stream, which stream, what, how sure.
    """
    from pipeline.cli.reach import reach
    from pipeline.consumer import Consumer
    from pipeline.errors import ConfigError
    from pipeline.settings import load_settings

    if wav is not None and stream is None:
        raise ConfigError("--wav writes the audio of one stream: name it with --stream")
    if until_end and stream is None:
        raise ConfigError("--until-end waits for the end of one stream: name it with --stream")
    given = load_settings(topic=topic, group=group, url=url)
    address = reach(given)
    start: Literal["beginning", "now"] = "beginning" if from_beginning else "now"
    with (
        Consumer(given.topic, given.group, url=address, start=start, stream=stream) as consumer,
        _Audio(wav, consumer.topic.sample_rate_hz) as audio,
    ):
        _tell_of_no_group(address, consumer.topic, given.group)
        deadline_s = None if seconds is None else time.monotonic() + seconds
        while deadline_s is None or time.monotonic() < deadline_s:
            interrupt.check()
            for result in _read(consumer, 0.5 if deadline_s is None else min(0.5, deadline_s - time.monotonic())):
                if as_json:
                    emit(as_record(result))
                else:
                    show(result, with_samples=wav is None)
                audio.take(result)
                if result.end and (until_end or wav is not None):
                    if wav is not None and not audio.samples:
                        raise ConfigError(
                            f"stream {result.stream!r} has ended and had no audio: it was empty, or the bundle of "
                            f"group {given.group!r} makes none (its head is not 'overlap_add')"
                        )
                    return
    if until_end or (wav is not None and not audio.samples):
        what = "not ended" if until_end else "had no audio"
        say_error(
            f"stream {stream!r} has {what} within {seconds:g} s: give it more --seconds, or see `statebelt topics`"
        )
        raise typer.Exit(1)


def _tell_of_no_group(url: str, topic: Topic, group: str) -> None:
    """A name that nobody works under may be a mistake, or that of a worker to come: tell, and wait all the same."""
    from pipeline.broker.connection import connect
    from pipeline.cli.office import no_group
    from pipeline.errors import BrokerUnavailable, ConfigError

    # A user who may read results and nothing else may not ask; a server that went away is waited for elsewhere.
    with suppress(BrokerUnavailable, ConfigError), closing(connect(url)) as client:
        if (missing := no_group(client, topic.name, topic.partitions, group)) is not None:
            say_warning(f"{missing}. Waiting for a worker of it; if the name is another, give it as --group")


class _Audio:
    """The named stream's audio, if a file is named. It is begun with the first samples: until then, what lies there
    stays.

    Attributes:
        samples: written so far.
    Raises:
        ConfigError: it cannot be written, or not as WAV.
    """

    def __init__(self, path: Path | None, rate_hz: float) -> None:
        from pipeline.cli.wav import check_place

        if path is not None:
            check_place(path, rate_hz)
        self._path, self._rate_hz = path, rate_hz
        self._file: WavFile | None = None
        self.samples = 0

    def take(self, result: Result) -> None:
        """A result's audio. Where the stream started afresh, its file has no gap: that is told."""
        from pipeline.cli.wav import WavFile

        if self._path is None:
            return
        for note in result.notes:
            say_warning(
                f"{result.stream}: {note['kind']} at chunk {result.seq}: the stream started afresh; {self._path} goes "
                f"on with it after {self.samples} samples"
            )
        if result.samples is not None and len(result.samples):
            self._file = self._file or WavFile(self._path, self._rate_hz)
            self._file.write(result.samples)
            self.samples = self._file.samples

    def __enter__(self) -> _Audio:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _read(consumer: Consumer, timeout_s: float) -> list[Result]:
    """What came; while Redis is away, nothing: reading goes on where it stood."""
    from pipeline.errors import BrokerUnavailable

    try:
        return consumer.read(timeout_s=max(0.0, timeout_s))
    except BrokerUnavailable as error:
        say_warning(f"{error} Waiting for it; nothing is skipped.")
        time.sleep(_AWAY_S)
        return []


def as_record(result: Result) -> dict[str, object]:
    """A result as JSON shows it."""
    from dataclasses import asdict

    record: dict[str, object] = {
        "id": result.id,
        "partition": result.partition,
        "stream": result.stream,
        "seq": result.seq,
        "events": [asdict(event) for event in result.events],
        "end": result.end,
        "notes": result.notes,
    }
    if result.scores is not None:
        record["scores"] = result.scores.tolist()
    if result.samples is not None:
        record["samples"] = len(result.samples)
    return record


def show(result: Result, *, with_samples: bool = True) -> None:
    """A result's lines for people."""
    from rich.markup import escape

    name = escape(result.stream)
    for event in result.events:
        span = f"{event.start_s:8.2f} - {event.end_s:7.2f} s"
        out.print(f"{span}  [cyan]{name}[/]  [bold]{escape(event.label)}[/]  {event.score:.2f}", highlight=False)
    if result.scores is not None and len(result.scores):
        out.print(f"{'':20}  [cyan]{name}[/]  {_told(result.scores)}", highlight=False)
    if result.samples is not None and with_samples:
        out.print(f"{'':20}  [cyan]{name}[/]  {len(result.samples)} samples", highlight=False)
    for note in result.notes:
        about = ", ".join(f"{key} {value}" for key, value in note.items() if key != "kind")
        said = escape(f"{note['kind']} {about}".strip())
        out.print(f"{'':20}  [cyan]{name}[/]  [yellow]{said}[/]", highlight=False)
    if result.end:
        out.print(f"{'':20}  [cyan]{name}[/]  [dim]end[/]", highlight=False)


def _told(scores: Array) -> str:
    """How many frames of scores `[T, C]`, and the values of the last one: of a forecast, its next steps."""
    values = " ".join(f"{value:.4g}" for value in scores[-1, :_VALUES])
    more = f" ... ({scores.shape[1]} in all)" if scores.shape[1] > _VALUES else ""
    return f"{counted(len(scores), 'frame')} of scores, the last one {values}{more}"
