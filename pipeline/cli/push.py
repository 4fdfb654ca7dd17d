"""`statebelt push`: recordings of sound or sensors, or raw PCM from standard input, into a topic."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from pipeline.cli import options
from pipeline.cli.console import emit, err, examples, out, say_error, say_warning
from pipeline.cli.plain import counted
from pipeline.cli.values import Columns, Given, Rate, finite, read_columns, read_given

if TYPE_CHECKING:
    from rich.progress import Progress

    from pipeline.cli.playback import Recording
    from pipeline.component import Array
    from pipeline.manifest import InputSpec
    from pipeline.producer import Producer
    from pipeline.settings import Settings

EXAMPLES = examples(
    ("statebelt push talk.wav --pace realtime", "as if it were spoken now"),
    ("statebelt push calls/", "every recording below calls/, each a stream, as fast as they are taken"),
    ("statebelt push calls/ --resume", "the same command was killed: only what is missing"),
    ("statebelt push walk.npz --topic phones --rate 50", "sensors: an archive's first float array [N, C], row by row"),
    ("statebelt push plant.csv --topic plant --columns flow,pressure", "a .csv file tells its rate by its times"),
    ("statebelt push hours.csv --topic hours --pace realtime --speed 3600", "an hour a second"),
    ("arecord -f S16_LE -r 8000 -t raw | statebelt push - --stream mic", "a microphone"),
)

_DEFAULT_RATE_HZ = 8000.0
_FILES_AT_ONCE = 64
"""Recordings held in memory when they go out as fast as possible."""
_TIMEOUT_S = 10.0
"""For which a push is tried, and what waits at the end is sent."""


class Pace(StrEnum):
    """How fast samples go out."""

    REALTIME = "realtime"
    FAST = "fast"


class WhenFull(StrEnum):
    """What to do when a partition has as many unread chunks as it may."""

    BLOCK = "block"
    REFUSE = "refuse"
    DROP_OLDEST = "drop_oldest"


class SampleType(StrEnum):
    """What a new topic carries."""

    INT16 = "int16"
    FLOAT32 = "float32"


def push(
    files: Annotated[list[Path], typer.Argument(help="Recordings, folders of them, or - for raw PCM on stdin.")],
    topic: options.Topic = None,
    stream: Annotated[
        str | None, typer.Option(help="The stream's name (one file only).", show_default="the file's name")
    ] = None,
    pace: Annotated[
        Pace, typer.Option(help="realtime: all files at once, each as long as it lasts. fast: as fast as possible.")
    ] = Pace.FAST,
    chunk_ms: Annotated[float, typer.Option(min=0.01, callback=finite, help="Length of a chunk.")] = 100.0,
    end: Annotated[bool, typer.Option("--end/--no-end", help="Whether a stream ends with its file.")] = True,
    speed: Annotated[
        float | None,
        typer.Option(min=1e-6, callback=finite, help="With realtime: so many times as fast.", show_default="1"),
    ] = None,
    rate: Rate = None,
    channels: Annotated[
        int | None,
        typer.Option(min=1, help="Channels of a topic that is created.", show_default="1; of a table, its columns"),
    ] = None,
    sample_type: Annotated[
        SampleType | None,
        typer.Option(help="Sample type of a topic that is created.", show_default="int16; for tables, float32"),
    ] = None,
    columns: Columns = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on where each stream stands: what is stored of its recording is not pushed again."
        ),
    ] = False,
    given: Given = None,
    when_full: Annotated[
        WhenFull,
        typer.Option(
            help="Where workers lag by max_backlog chunks. block: wait up to 10 s. refuse: stop at once. drop_oldest: "
            "never wait, drop what has waited here longest; workers report the gap."
        ),
    ] = WhenFull.BLOCK,
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """Push recordings into a topic: of sound, in any format, resampled to what the topic carries; of sensors, in .csv,
    .tsv and .npz files, one row a sample, never resampled.

    Raw PCM on standard input must already be what the topic carries, little-endian.
    """
    from pipeline import recordings
    from pipeline.errors import ConfigError
    from pipeline.settings import load_settings

    stdin = [str(path) for path in files] == ["-"]
    if not stdin and any(str(path) == "-" for path in files):
        raise ConfigError("- (standard input) stands alone; push files with another command")
    if speed is not None and pace is Pace.FAST:
        raise ConfigError("--speed is how fast real time goes: give --pace realtime with it")
    factor = speed or 1.0 if pace is Pace.REALTIME else None
    settings, values, chosen = load_settings(topic=topic, url=url), read_given(given), read_columns(columns)
    paths = [] if stdin else recordings.find(files)
    wishes = _Wishes(rate, channels, sample_type.value if sample_type else None)
    with _open(settings, wishes, paths, chosen, when_full) as producer:
        if stdin:
            if resume:
                producer.resume(stream or "stdin")  # a pipe goes on where it is: only the numbers have to
            if values is not None:
                producer.give(stream or "stdin", values)
            _push_stdin(producer, stream or "stdin", factor, chunk_ms, end, as_json)
        else:
            _push_files(producer, paths, chosen, stream, factor, chunk_ms, end, resume, values, as_json)


class _Wishes(NamedTuple):
    """What the flags say of a topic; None: nothing."""

    rate_hz: float | None
    channels: int | None
    sample_type: Literal["int16", "float32"] | None


def _of_table(path: Path, columns: tuple[str, ...] | None, wishes: _Wishes) -> _Wishes:
    """What a topic is to be that does not exist yet, by its first file and the flags. Raises ConfigError: no rate."""
    from pipeline import sensor
    from pipeline.errors import ConfigError

    table = sensor.read_table(path, columns)
    rate_hz = wishes.rate_hz or (1 / table.step_s if table.step_s else None)
    if rate_hz is None:
        raise ConfigError(f"{path}: does not tell how many rows are a second; say --rate: 50, or 1/3600 if hourly")
    return _Wishes(rate_hz, wishes.channels or len(table.columns), wishes.sample_type or "float32")


def _open(
    given: Settings, wishes: _Wishes, paths: list[Path], columns: tuple[str, ...] | None, when_full: WhenFull
) -> Producer:
    """A producer for the topic as it is, or as flags, the first file and defaults say when it has yet to be created."""
    from pipeline import sensor
    from pipeline.broker.connection import connect
    from pipeline.broker.topic import describe
    from pipeline.cli.reach import reach
    from pipeline.producer import Producer

    url = reach(given)
    with closing(connect(url)) as client:
        found = describe(client, given.topic)
    if found:
        wishes = _Wishes(
            wishes.rate_hz or found.sample_rate_hz,
            wishes.channels or found.channels,
            wishes.sample_type or found.sample_type,
        )
    elif paths and sensor.is_table(paths[0]):
        wishes = _of_table(paths[0], columns, wishes)
    return Producer(
        given.topic,
        url=url,
        sample_rate_hz=wishes.rate_hz or _DEFAULT_RATE_HZ,
        channels=wishes.channels or 1,
        sample_type=wishes.sample_type or "int16",
        partitions=None if found else given.partitions,
        max_backlog=given.max_backlog,
        when_full=when_full.value,
        timeout_s=_TIMEOUT_S,
    )


def _push_files(
    producer: Producer,
    paths: list[Path],
    columns: tuple[str, ...] | None,
    stream: str | None,
    speed: float | None,
    chunk_ms: float,
    end: bool,
    resume: bool,
    values: Array | None,
    as_json: bool,
) -> None:
    """Each a stream; at `speed` times real time all at once, without one as fast as they are taken."""
    from pipeline.cli.playback import chunk_samples, paced, rounds, stream_names
    from pipeline.errors import ConfigError

    if stream is not None and len(paths) > 1:
        raise ConfigError(f"--stream names one stream, but there are {len(paths)} recordings; leave it out")
    names = [stream] if stream is not None else stream_names(paths)
    rate_hz = producer.spec.sample_rate_hz
    step = chunk_samples(chunk_ms, rate_hz)
    at_once = len(paths) if speed else _FILES_AT_ONCE
    began_s, pushed, seconds, unreadable = time.monotonic(), 0, 0.0, 0
    with _progress(as_json) as bar:
        job = bar.add_task("pushing", total=None)
        total = 0.0
        for cut in range(0, len(paths), at_once):
            group = _read(paths[cut : cut + at_once], names[cut : cut + at_once], producer.spec, columns)
            unreadable += len(paths[cut : cut + at_once]) - len(group)
            if resume:
                group = _what_is_missing(producer, group, end)
            if values is not None:
                for recording in group:
                    producer.give(recording.stream, values)
            total += sum(len(recording.samples) for recording in group) / rate_hz
            bar.update(job, total=total)
            parts = rounds(group, step, end=end)
            last = dict.fromkeys((recording.stream for recording in group), 0)
            for part in paced(parts, rate_hz * speed) if speed else parts:
                last.update(zip((item[0] for item in part.items), producer.push_many(part.items), strict=True))
                bar.advance(job, sum(len(samples) for _, samples, _ in part.items) / rate_hz)
            pushed += len(group)
            seconds += sum(len(recording.samples) for recording in group) / rate_hz
            for recording in group if as_json else ():
                _report(producer, recording.stream, len(recording.samples), step, last[recording.stream], recording)
    _close(producer, as_json)
    if not as_json:
        out.print(
            f"pushed {counted(pushed, 'recording')}, {seconds:.1f} s of signal, to topic "
            f"{producer.topic!r} in {time.monotonic() - began_s:.1f} s",
            highlight=False,
        )
    if unreadable:
        raise typer.Exit(2)


def _read(paths: list[Path], names: list[str], spec: InputSpec, columns: tuple[str, ...] | None) -> list[Recording]:
    """The readable ones; each of the others is reported and left out."""
    from pipeline import recordings
    from pipeline.cli.playback import Recording
    from pipeline.errors import RecordingError

    found = []
    for path, name in zip(paths, names, strict=True):
        try:
            found.append(Recording(name, path, recordings.read(path, spec, columns, say_warning)))
        except RecordingError as error:
            say_error(str(error))
    return found


def _what_is_missing(producer: Producer, group: list[Recording], end: bool) -> list[Recording]:
    """Of each recording what its stream does not hold yet; those that it holds whole are left out."""
    from pipeline.errors import ConfigError

    missing = []
    for whole in group:
        stand, length = producer.resume(whole.stream), len(whole.samples)
        if stand.samples > length:
            rate_hz = producer.spec.sample_rate_hz
            raise ConfigError(
                f"stream {whole.stream!r} holds {stand.samples / rate_hz:.2f} s, but {whole.path} has only "
                f"{length / rate_hz:.2f} s: it was another recording. Name another --stream, or leave out --resume"
            )
        if not stand.ended and (end or stand.samples < length):
            missing.append(replace(whole, samples=whole.samples[stand.samples :], skipped=stand.samples))
    return missing


def _push_stdin(
    producer: Producer, stream: str, speed: float | None, chunk_ms: float, end: bool, as_json: bool
) -> None:
    from pipeline import audio
    from pipeline.cli.playback import chunk_samples, sleep_until

    rate_hz = producer.spec.sample_rate_hz
    step = chunk_samples(chunk_ms, rate_hz)
    began_s, samples, last = time.monotonic(), 0, 0
    try:
        with _progress(as_json) as bar:
            job = bar.add_task("pushing", total=None)
            for chunk in audio.pcm(sys.stdin.buffer, producer.spec, step):
                samples += len(chunk)
                if speed:
                    sleep_until(began_s + samples / rate_hz / speed)
                last = producer.push(stream, chunk)
                bar.advance(job, len(chunk) / rate_hz)
    finally:  # also when it was interrupted: what was said so far is decided
        if end:
            last = producer.end(stream)
    _close(producer, as_json)
    if as_json:
        _report(producer, stream, samples, step, last, None)
    else:
        out.print(
            f"pushed {samples / rate_hz:.1f} s of signal to stream {stream!r} of topic {producer.topic!r}",
            highlight=False,
        )


def _close(producer: Producer, as_json: bool) -> None:
    """Send what still waits, and tell what was dropped instead: nothing is said of it anywhere else here."""
    producer.close()
    chunks, ends = producer.counts["dropped"], producer.counts["dropped_ends"]
    if not chunks and not ends:
        return
    if as_json:
        emit({"topic": producer.topic, "pushed": producer.counts["pushed"], "dropped": chunks, "dropped_ends": ends})
    else:
        untold = f"; {counted(ends, 'stream')} {'has' if ends == 1 else 'have'} no end" if ends else ""
        say_warning(f"dropped {chunks} of {chunks + producer.counts['pushed']} chunks: workers lag behind{untold}")


def _report(producer: Producer, stream: str, samples: int, step: int, last: int, recording: Recording | None) -> None:
    record: dict[str, object] = {
        "topic": producer.topic,
        "stream": stream,
        "seconds": samples / producer.spec.sample_rate_hz,
        "chunks": max(1, -(-samples // step)),
        "last_seq": last if last >= 0 else None,  # of what still waits, nobody knows it yet
    }
    if recording:
        record = {"file": str(recording.path), **record}
        if recording.skipped:
            record["from_s"] = recording.skipped / producer.spec.sample_rate_hz
    emit(record)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.1f} s"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bar:
        yield bar
