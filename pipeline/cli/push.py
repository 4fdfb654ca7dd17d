"""`statebelt push`: recordings of sound or sensors, or raw PCM from standard input, into a topic."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import interrupt, options
from pipeline.cli.console import examples, out, say_error, say_warning
from pipeline.cli.plain import counted
from pipeline.cli.values import Columns, Given, Rate, finite, read_columns, read_given

if TYPE_CHECKING:
    from pipeline.cli.playback import Recording
    from pipeline.cli.target import Target
    from pipeline.component import Array
    from pipeline.manifest import InputSpec
    from pipeline.producer import Producer

EXAMPLES = examples(
    ("statebelt push talk.wav --pace realtime", "as if it were spoken now"),
    ("statebelt push calls/", "every recording below calls/, each a stream, as fast as they are taken"),
    ("statebelt push calls/ --resume", "the same command was killed: only what is missing"),
    ("statebelt push walk.npz --topic phones --rate 50", "sensors: an archive's first float array [N, C], row by row"),
    ("statebelt push plant.csv --topic plant --columns flow,pressure", "a .csv file tells its rate by its times"),
    ("statebelt push hours.csv --topic hours --pace realtime --speed 3600", "an hour a second"),
    ("arecord -f S16_LE -r 8000 -t raw | statebelt push - --stream mic", "a microphone"),
)

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
            "--resume",
            help="Go on where each stream stands: what is stored of its recording is not pushed again. Standard input "
            "is taken for the same signal again, from its beginning: not for a microphone.",
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

    Raw PCM on standard input must already be what the topic carries, little-endian. A topic is made when there is
    something to push.
    """
    from pipeline import recordings
    from pipeline.cli.pipe import push_stdin
    from pipeline.cli.target import Wishes, target
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
    names = _names(paths, stream) if paths else _checked(["stdin" if stream is None else stream])
    wishes = Wishes(rate, channels, sample_type.value if sample_type else None)
    with target(settings, wishes, paths, chosen, when_full.value, _TIMEOUT_S) as where:
        if stdin:
            push_stdin(where, names[0], factor, chunk_ms, end, resume, values, as_json)
        else:
            _push_files(where, paths, names, chosen, factor, chunk_ms, end, resume, values, as_json)


def _names(paths: list[Path], stream: str | None) -> list[str]:
    """The streams of these files. Raises ConfigError: one name for several; ChunkRejected: a name that is none."""
    from pipeline.cli.playback import stream_names
    from pipeline.errors import ConfigError

    if stream is not None and len(paths) > 1:
        raise ConfigError(f"--stream names one stream, but there are {len(paths)} recordings; leave it out")
    return _checked(stream_names(paths) if stream is None else [stream])


def _checked(names: list[str]) -> list[str]:
    """Before anything is made or sent for them."""
    from pipeline.broker.keys import check_stream

    return [check_stream(name) for name in names]


def _push_files(
    target: Target,
    paths: list[Path],
    names: list[str],
    columns: tuple[str, ...] | None,
    speed: float | None,
    chunk_ms: float,
    end: bool,
    resume: bool,
    values: Array | None,
    as_json: bool,
) -> None:
    """Each a stream; at `speed` times real time all at once, without one as fast as they are taken."""
    from pipeline.cli.playback import chunk_samples, paced, rounds
    from pipeline.cli.told import finish, progress, report, report_stored

    rate_hz = target.spec.sample_rate_hz
    step = chunk_samples(chunk_ms, rate_hz)
    at_once = len(paths) if speed else _FILES_AT_ONCE
    began_s, pushed, seconds, unreadable, stored = time.monotonic(), 0, 0.0, 0, 0
    with progress(as_json) as bar:
        job = bar.add_task("pushing", total=None)
        total = 0.0
        for cut in range(0, len(paths), at_once):
            group = _read(paths[cut : cut + at_once], names[cut : cut + at_once], target.spec, columns)
            unreadable += len(paths[cut : cut + at_once]) - len(group)
            if not group:
                continue
            producer = target.open()
            if resume:
                group, whole = _what_is_missing(producer, group, end)
                stored += len(whole)
                for recording in whole if as_json else ():
                    report_stored(producer, recording.stream, len(recording.samples), recording.path)
            if values is not None:
                for recording in group:
                    producer.give(recording.stream, values)
            total += sum(len(recording.samples) for recording in group) / rate_hz
            bar.update(job, total=total)
            parts = rounds(group, step, end=end)
            last = dict.fromkeys((recording.stream for recording in group), 0)
            for part in paced(parts, rate_hz * speed) if speed else parts:
                interrupt.check()
                last.update(zip((item[0] for item in part.items), producer.push_many(part.items), strict=True))
                bar.advance(job, sum(len(samples) for _, samples, _ in part.items) / rate_hz)
            pushed += len(group)
            seconds += sum(len(recording.samples) for recording in group) / rate_hz
            for one in group if as_json else ():
                chunks = -(-len(one.samples) // step)
                report(producer, one.stream, len(one.samples), chunks, last[one.stream], one.skipped, one.path)
    if target.producer is not None:
        finish(target.producer, as_json)
    if not as_json:
        already = (
            f"; {stored} {'was' if stored == 1 else 'were'} already stored to {'its' if stored == 1 else 'their'} end"
        )
        out.print(
            f"pushed {counted(pushed, 'recording')}, {seconds:.1f} s of signal, to topic "
            f"{target.topic!r} in {time.monotonic() - began_s:.1f} s{already if stored else ''}",
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


def _what_is_missing(producer: Producer, group: list[Recording], end: bool) -> tuple[list[Recording], list[Recording]]:
    """Of each recording what its stream does not hold yet, and those that are held whole: these are left out."""
    from pipeline.errors import ConfigError

    missing, stored, rate_hz = [], [], producer.spec.sample_rate_hz
    for whole in group:
        stand, length = producer.resume(whole.stream), len(whole.samples)
        if stand.samples > length:
            raise ConfigError(
                f"stream {whole.stream!r} holds {stand.samples / rate_hz:.2f} s, but {whole.path} has only "
                f"{length / rate_hz:.2f} s: it was another recording. Name another --stream, or leave out --resume"
            )
        if stand.ended and stand.samples < length:
            say_warning(
                f"stream {whole.stream!r} has ended with {stand.samples / rate_hz:.2f} of the {length / rate_hz:.2f} s "
                f"of {whole.path}: nothing more is pushed to it. Leave out --resume to push all of it as a new life"
            )
        elif stand.ended or (stand.samples == length and not end):
            stored.append(whole)
        else:
            missing.append(replace(whole, samples=whole.samples[stand.samples :], skipped=stand.samples))
    return missing, stored
