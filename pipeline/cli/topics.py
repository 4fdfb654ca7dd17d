"""`statebelt topics`: how every topic stands."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from pipeline.cli import options
from pipeline.cli.console import emit, examples, out

if TYPE_CHECKING:
    from pipeline.broker.admin import PartitionStatus, TopicStatus

EXAMPLES = examples(
    ("statebelt topics", "who owns what, and how far behind"),
    ("statebelt topics --json | jq '.partitions[].groups[].lag'", "for machines: one line a topic"),
)


def topics(
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """Show topics: partitions, owners, lag, streams, dead letters."""
    from pipeline.broker import admin
    from pipeline.broker.connection import connect
    from pipeline.cli.reach import reach
    from pipeline.settings import load_settings

    with closing(connect(reach(load_settings(url=url)))) as client:
        found = [admin.status(client, topic.name) for topic in admin.topics(client)]
    for status in found:
        if as_json:
            emit(as_record(status))
        else:
            _show(status)
    if not found and not as_json:
        out.print("no topics yet: `statebelt push FILE` or `statebelt worker` creates one")


def as_record(status: TopicStatus) -> dict[str, object]:
    """A topic as JSON shows it."""
    topic = status.topic
    return {
        "topic": topic.name,
        "sample_rate_hz": topic.sample_rate_hz,
        "sample_type": topic.sample_type,
        "channels": topic.channels,
        "streams_complete": status.streams_complete,
        "partitions": [
            {
                "partition": partition.partition,
                "chunks": partition.chunks,
                "backlog": partition.backlog,
                "groups": [
                    {
                        "group": group.group,
                        "owner": group.owner,
                        "epoch": group.epoch,
                        "lease_remaining_ms": group.lease_remaining_ms,
                        "offset": group.offset.decode(),
                        "lag": group.lag,
                        "streams": group.streams,
                        "results": group.results,
                        "dead": group.dead,
                    }
                    for group in partition.groups
                ],
            }
            for partition in status.partitions
        ],
    }


def _show(status: TopicStatus) -> None:
    from rich.markup import escape
    from rich.table import Table

    topic = status.topic
    out.print(
        f"[bold]{escape(topic.name)}[/]  {topic.sample_rate_hz:g} Hz, {topic.channels} x {topic.sample_type}, "
        f"{topic.partitions} partitions",
        highlight=False,
    )
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in ("partition", "chunks", "group", "owner", "epoch", "lag", "streams", "results", "dead"):
        table.add_column(name, justify="left" if name in ("group", "owner") else "right", overflow="fold")
    for partition in status.partitions:
        for row in _rows(partition):
            table.add_row(*row)
    out.print(table)
    if not status.streams_complete:
        out.print("streams are counted in part: the server holds more keys than are looked at", style="dim")


def _rows(partition: PartitionStatus) -> list[list[str]]:
    head = [str(partition.partition), str(partition.chunks)]
    if not partition.groups:
        return [[*head, "[dim]none[/]", "", "", "", "", "", ""]]
    return [
        [
            *(head if i == 0 else ["", ""]),
            group.group,
            group.owner or "[red]nobody[/]",
            str(group.epoch),
            "?" if group.lag is None else str(group.lag),
            str(group.streams),
            str(group.results),
            f"[red]{group.dead}[/]" if group.dead else "0",
        ]
        for i, group in enumerate(partition.groups)
    ]
