"""`statebelt group`: the end of a deployment."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from pipeline.cli import options
from pipeline.cli.console import examples, out
from pipeline.cli.plain import counted, emit_escaped
from pipeline.cli.sure import Yes, sure

DROP_EXAMPLES = examples(
    ("statebelt group drop digits-v1", "once its workers have stopped; asks first"),
    ("statebelt group drop digits-v1 --topic calls --yes", "for scripts"),
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=DROP_EXAMPLES,
    help="Remove a deployment (a group) from a topic. `statebelt topics` shows which there are.",
)


@app.callback()
def _group() -> None:
    pass


@app.command("drop", epilog=DROP_EXAMPLES)
def drop(
    name: Annotated[str, typer.Argument(metavar="GROUP", help="As `statebelt topics` shows it.")],
    topic: options.Topic = None,
    yes: Yes = False,
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """Remove a group with its results, its streams' state and its dead letters.

    The topic's chunks and its other groups stay as they are. A group whose workers are gone for good should be
    dropped: until the settings' outage_ms is over, chunks are kept for it and producers count its lag.
    """
    from pipeline.broker import admin
    from pipeline.broker.connection import connect
    from pipeline.cli.reach import reach
    from pipeline.errors import ConfigError
    from pipeline.settings import load_settings

    given = load_settings(topic=topic, url=url)
    with closing(connect(reach(given))) as client:
        status = admin.status(client, given.topic)
        mine = {p.partition: g for p in status.partitions for g in p.groups if g.group == name}
        if not mine:
            names = ", ".join(sorted({g.group for p in status.partitions for g in p.groups})) or "none"
            raise ConfigError(f"no group {name!r} on topic {given.topic!r}; there are: {names}")
        held = {partition: g for partition, g in mine.items() if g.owner is not None}
        if held:
            raise ConfigError(
                f"group {name!r} is at work: {', '.join(sorted({str(g.owner) for g in held.values()}))} on partitions "
                f"{', '.join(map(str, held))}. Stop its workers first; a killed one's leases end within "
                f"{max(g.lease_remaining_ms for g in held.values()) / 1000:.0f} s"
            )
        facts = {
            "results": sum(g.results for g in mine.values()),
            "streams": sum(g.streams for g in mine.values()),
            "dead": sum(g.dead for g in mine.values()),
            "lag": sum(g.lag or 0 for g in mine.values()),
        }
        if not yes:
            sure(
                f"Remove group {name!r} of topic {given.topic!r}: {counted(facts['results'], 'result')}, the "
                f"state of {counted(facts['streams'], 'stream')}, {counted(facts['dead'], 'dead letter')}, "
                f"{counted(facts['lag'], 'chunk')} not read?"
            )
        admin.drop_group(client, given.topic, name, status.topic.partitions)
    if as_json:
        emit_escaped({"topic": given.topic, "group": name, **facts})
    else:
        out.print(f"removed group {name!r} of topic {given.topic!r}", highlight=False, markup=False)
