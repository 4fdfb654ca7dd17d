"""`statebelt worker`: the long-running process that does the work."""

from __future__ import annotations

import signal
from enum import StrEnum
from typing import Annotated

import typer

from pipeline.cli import options
from pipeline.cli.console import examples

EXAMPLES = examples(
    ("statebelt worker", "the shipped digits bundle on topic audio"),
    ("statebelt worker --bundle my.onnx --topic calls --group v2", "a bundle of your own, beside others"),
    ("statebelt worker & statebelt worker", "two processes share the partitions; one dies, the other goes on"),
)

_TUNING = "Tuning"


class OnGap(StrEnum):
    """What missing chunks do to a stream."""

    RESTART = "restart"
    CONTINUE = "continue"


class Publish(StrEnum):
    """Which chunks get a result entry."""

    EVENTS = "events"
    CHUNKS = "chunks"


class Level(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Format(StrEnum):
    """How it is logged."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


def _tuning(text: str, default: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(help=text, show_default=default, rich_help_panel=_TUNING)
    return option


def worker(
    bundle: Annotated[
        str | None, typer.Option(help="A bundle's path, or the name of a shipped one.", show_default="digits")
    ] = None,
    topic: options.Topic = None,
    group: Annotated[
        str | None, typer.Option(help="This deployment's name; one group, one bundle.", show_default="digits")
    ] = None,
    url: options.Url = None,
    partitions: Annotated[int | None, _tuning("Of a topic that is created.", "4")] = None,
    lease_ms: Annotated[int | None, _tuning("After which a silent worker's partitions are free.", "10000")] = None,
    idle_ms: Annotated[int | None, _tuning("After which a silent stream's state expires.", "3600000")] = None,
    on_gap: Annotated[OnGap | None, _tuning("What missing chunks do to a stream.", "restart")] = None,
    publish: Annotated[Publish | None, _tuning("A result entry for what is said, or every chunk.", "events")] = None,
    read_entries: Annotated[int | None, _tuning("Chunks of one read, at most.", "256")] = None,
    max_batch: Annotated[int | None, _tuning("Streams in one model step, at most.", "64")] = None,
    belt_rows: Annotated[int | None, _tuning("Rows of carried state kept in memory.", "4096")] = None,
    log_level: Annotated[Level | None, _tuning("How much is logged.", "info")] = None,
    log_format: Annotated[Format | None, _tuning("How it is logged, to standard error.", "auto")] = None,
) -> None:
    """Run a bundle over a topic's streams, until Ctrl-C or SIGTERM.

    Both finish the batch and commit. It may as well be killed at any moment: whoever takes its partitions over goes
    on where the last commit stands.
    """
    from pipeline.cli.reach import reach
    from pipeline.logs import configure
    from pipeline.settings import load_settings
    from pipeline.worker import Worker

    given = load_settings(
        bundle=bundle,
        topic=topic,
        group=group,
        url=url,
        partitions=partitions,
        lease_ms=lease_ms,
        idle_ms=idle_ms,
        on_gap=on_gap and on_gap.value,
        publish=publish and publish.value,
        read_entries=read_entries,
        max_batch=max_batch,
        belt_rows=belt_rows,
        log_level=log_level and log_level.value,
        log_format=log_format and log_format.value,
    )
    configure(given.log_level, given.log_format)
    work = Worker(given)
    reach(given)

    def stop(_signal: int, _frame: object) -> None:
        work.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    work.run()
