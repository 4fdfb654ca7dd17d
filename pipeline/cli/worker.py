"""`statebelt worker`: the long-running process that does the work."""

from __future__ import annotations

import os
import signal
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import options
from pipeline.cli.console import err, examples, out
from pipeline.cli.plain import counted

if TYPE_CHECKING:
    from pipeline.settings import Settings

EXAMPLES = examples(
    ("statebelt worker", "the shipped digits bundle on topic audio"),
    ("statebelt worker --bundle my.onnx --topic calls --group v2", "a bundle of your own, beside others"),
    ("statebelt worker --procs 4", "four processes share the partitions; one dies, the others go on"),
    ("statebelt worker --check", "for probes: does a worker here own what it should, and keep up?"),
)

_TUNING = "Tuning"
_GRACE_S = 1.0
"""What a worker gets beyond `drain_ms`: to give its leases back, once its last commit is done or given up."""


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


class Durability(StrEnum):
    """What an acknowledged write survives."""

    FAST = "fast"
    DURABLE = "durable"
    REPLICATED = "replicated"


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
    procs: Annotated[int, typer.Option(min=0, help="Worker processes to run; 0: one for each core.")] = 1,
    durability: Annotated[
        Durability | None, typer.Option(help="What an acknowledged write survives.", show_default="fast")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run nothing: exit 0 if the workers here are ready, else say why not.")
    ] = False,
    live: Annotated[bool, typer.Option("--live", help="With --check: is it enough that they are alive.")] = False,
    partitions: Annotated[int | None, _tuning("Of a topic that is created.", "4")] = None,
    lease_ms: Annotated[int | None, _tuning("After which a silent worker's partitions are free.", "10000")] = None,
    idle_ms: Annotated[int | None, _tuning("After which a silent stream's state expires.", "3600000")] = None,
    drain_ms: Annotated[int | None, _tuning("In which a worker that is told to stop must be done.", "5000")] = None,
    on_gap: Annotated[OnGap | None, _tuning("What missing chunks do to a stream.", "restart")] = None,
    publish: Annotated[Publish | None, _tuning("A result entry for what is said, or every chunk.", "events")] = None,
    read_entries: Annotated[int | None, _tuning("Chunks of one read, at most.", "256")] = None,
    max_batch: Annotated[int | None, _tuning("Streams in one model step, at most.", "64")] = None,
    belt_rows: Annotated[
        int | None, _tuning("Rows of carried state kept in memory.", "what 64 MiB hold, 4096 at least")
    ] = None,
    row_every_chunks: Annotated[
        int | None, _tuning("Of a stream, between two commits of its row; with more, takeovers replay.", "1")
    ] = None,
    log_level: Annotated[Level | None, _tuning("How much is logged.", "info")] = None,
    log_format: Annotated[Format | None, _tuning("How it is logged, to standard error.", "auto")] = None,
) -> None:
    """Run a bundle over a topic's streams, until Ctrl-C or SIGTERM.

    Both finish the batch and commit. It may as well be killed at any moment: whoever takes its partitions over goes
    on where the last commit stands. Any number of workers, on any machines, share the partitions evenly.
    """
    from pipeline.errors import ConfigError
    from pipeline.logs import configure
    from pipeline.settings import load_settings

    flags: dict[str, object] = {
        "bundle": bundle,
        "topic": topic,
        "group": group,
        "url": url,
        "partitions": partitions,
        "lease_ms": lease_ms,
        "idle_ms": idle_ms,
        "drain_ms": drain_ms,
        "durability": durability and durability.value,
        "on_gap": on_gap and on_gap.value,
        "publish": publish and publish.value,
        "read_entries": read_entries,
        "max_batch": max_batch,
        "belt_rows": belt_rows,
        "row_every_chunks": row_every_chunks,
        "log_level": log_level and log_level.value,
        "log_format": log_format and log_format.value,
    }
    given = load_settings(**flags)
    if live and not check:
        raise ConfigError("--live goes with --check")
    if check:
        raise typer.Exit(_check(given, live))
    configure(given.log_level, given.log_format)
    raise typer.Exit(_run(given) if procs == 1 else _run_many(given, procs, flags))


def _check(given: Settings, live: bool) -> int:
    """Say how the workers of this machine are; 0 if all is well."""
    from pipeline import status
    from pipeline.broker.connection import shown

    found = status.read(given.status_folder, given.redis_url, given.topic, given.group)
    faults = status.faults(found, live) if found else [f"no worker of this group on {shown(given.redis_url)} runs here"]
    for fault in faults:
        err.print(fault, highlight=False, markup=False, soft_wrap=True)
    if not faults:
        owned = sum(s.owned for s in found)
        word = "alive" if live else "ready"
        out.print(
            f"{word}: {counted(len(found), 'worker')} own{'s' * (len(found) == 1)} {counted(owned, 'partition')}",
            highlight=False,
        )
    return 1 if faults else 0


def _run(given: Settings) -> int:
    """One worker, in this process."""
    from pipeline.cli import interrupt
    from pipeline.cli.memory import collect_seldom, keep_freed
    from pipeline.cli.reach import reach
    from pipeline.logs import logger
    from pipeline.worker import Worker

    keep_freed()
    work = Worker(given)
    reach(given)
    collect_seldom()

    def too_late(_signal: int, _frame: object) -> None:
        # Stuck, say in a reply that never comes. To leave like this loses nothing: the leases end by themselves.
        logger(owner=work.owner).warning("drain_deadline", drain_ms=given.drain_ms)
        os._exit(1)

    def stop(_signal: int, _frame: object) -> None:
        work.stop()
        if signal.getsignal(signal.SIGALRM) is not too_late:  # else it was told before: the deadline stays
            signal.signal(signal.SIGALRM, too_late)
            signal.setitimer(signal.ITIMER_REAL, given.drain_ms / 1000 + _GRACE_S)
        signal.signal(signal.SIGINT, interrupt.interrupt)  # a second Ctrl-C does not wait

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    interrupt.check()
    work.run()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def _run_many(given: Settings, procs: int, flags: dict[str, object]) -> int:
    """A parent and its worker processes."""
    from pipeline.cli import interrupt
    from pipeline.cli.procs import Crew
    from pipeline.cli.reach import reach

    reach(given)
    environment = {f"STATEBELT_{name.upper()}": str(value) for name, value in flags.items() if value is not None}
    count = procs or len(os.sched_getaffinity(0))
    crew = Crew(count, environment, given.drain_ms / 1000 + 2 * _GRACE_S)

    def stop(_signal: int, _frame: object) -> None:
        crew.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    interrupt.check()
    return crew.run()
