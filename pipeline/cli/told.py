"""What a push tells: how far it is, what became of a stream, what was dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.console import emit, err, say_warning
from pipeline.cli.plain import counted

if TYPE_CHECKING:
    from rich.progress import Progress

    from pipeline.producer import Producer


def finish(producer: Producer, as_json: bool) -> None:
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


def report(
    producer: Producer, stream: str, samples: int, chunks: int, last: int, skipped: int, path: Path | None = None
) -> None:
    """A stream's JSON line. Of `skipped` samples it held already, nothing was pushed."""
    record: dict[str, object] = {
        "topic": producer.topic,
        "stream": stream,
        "seconds": samples / producer.spec.sample_rate_hz,
        "chunks": max(1, chunks),
        "last_seq": last if last >= 0 else None,  # of what still waits, nobody knows it yet
    }
    if path is not None:
        record = {"file": str(path), **record}
    if skipped:
        record["from_s"] = skipped / producer.spec.sample_rate_hz
    emit(record)


def report_stored(producer: Producer, stream: str, samples: int, path: Path) -> None:
    """The JSON line of a recording that its stream held to its end: nothing was pushed."""
    from_s = samples / producer.spec.sample_rate_hz
    told = {"topic": producer.topic, "stream": stream, "seconds": 0.0, "chunks": 0, "last_seq": None, "from_s": from_s}
    emit({"file": str(path), **told})


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A bar on standard error, where somebody looks."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.1f} s"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bar:
        yield bar
