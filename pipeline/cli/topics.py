"""`statebelt topics`: how every topic stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from pipeline.cli import options
from pipeline.cli.console import examples, out, say_warning
from pipeline.cli.plain import counted, duration, emit_escaped, printable

if TYPE_CHECKING:
    from pipeline.broker.admin import GroupStatus, PartitionStatus, TopicStatus

EXAMPLES = examples(
    ("statebelt topics", "who owns what, how far behind, and what needs a hand"),
    ("statebelt topics --json | jq '.partitions[].groups[].lag'", "for machines: one line a topic"),
    ("statebelt topics --json | jq -r '.warnings[]'", "only what needs a hand"),
)


def topics(
    url: options.Url = None,
    as_json: options.Json = False,
) -> None:
    """Show topics: partitions, owners, lag, streams, dead letters.

    Red: chunks wait, and nobody works on that partition. Yellow: a group has not read what is past its retention
    (input_retention_ms), so the log is kept for it.
    """
    from pipeline.broker import admin
    from pipeline.broker.connection import connect
    from pipeline.cli.reach import reach
    from pipeline.settings import load_settings

    given = load_settings(url=url)
    with closing(connect(reach(given))) as client:
        found = [admin.status(client, topic.name) for topic in admin.topics(client)]
    for status in found:
        if as_json:
            emit_escaped(as_record(status, given.input_retention_ms))
        else:
            _show(status, given.input_retention_ms)
    if not found and not as_json:
        out.print("no topics yet: `statebelt push FILE` or `statebelt worker` creates one")


def unowned(group: GroupStatus) -> bool:
    """Whether chunks wait for a group, and nobody works on them. An unknown lag may be one."""
    return group.deployment and group.owner is None and group.lag != 0


def holds_back(group: GroupStatus, retention_ms: int) -> bool:
    """Whether chunks are kept for this group's sake: it has still to read what is older than the retention."""
    return group.unread_ms is not None and group.unread_ms > retention_ms


def warnings(status: TopicStatus, retention_ms: int) -> list[str]:
    """What needs a hand, a sentence a group: who waits for a worker, who holds back trimming."""
    topic = status.topic.name
    groups: dict[str, list[tuple[int, GroupStatus]]] = {}
    for partition in status.partitions:
        for each in partition.groups:
            groups.setdefault(each.group, []).append((partition.partition, each))
    found = []
    for name, everywhere in groups.items():
        told = printable(name)
        waiting = [(p, g) for p, g in everywhere if unowned(g)]
        late = [(p, g) for p, g in everywhere if holds_back(g, retention_ms) and not unowned(g)]
        if waiting:
            found.append(
                f"nobody works for group {told!r} on {_where(topic, waiting)}: start `statebelt worker --topic {topic} "
                f"--group {told} --bundle ...` with the bundle that it ran, or, if it is not needed any more, "
                f"`statebelt group drop {told} --topic {topic}`"
            )
        if late and late[0][1].deployment:
            found.append(f"group {told!r} holds back trimming on {_where(topic, late)}: it needs more workers, or time")
        elif late:
            found.append(
                f"group {told!r} holds back trimming on {_where(topic, late)}. It is no deployment, somebody made it "
                "by hand: `XGROUP DESTROY` removes it"
            )
    return found


def _where(topic: str, of: Sequence[tuple[int, GroupStatus]]) -> str:
    lags = [group.lag for _, group in of]
    known = sum(lag or 0 for lag in lags)
    waiting = f"{counted(known, 'chunk')} wait{'s' * (known == 1)}"
    if None in lags:
        waiting = "an unknown number of chunks wait"
    numbers = [str(partition) for partition, _ in of]
    shown = ", ".join(numbers[:8]) + f" and {len(numbers) - 8} more" * (len(numbers) > 8)
    oldest = max((group.unread_ms or 0 for _, group in of), default=0)
    return f"partition{'s' * (len(of) > 1)} {shown} of {topic!r}: {waiting}, the oldest for {duration(oldest)}"


def as_record(status: TopicStatus, retention_ms: int) -> dict[str, object]:
    """A topic as JSON shows it, judged by how long chunks are kept at least."""
    topic = status.topic
    return {
        "topic": topic.name,
        "sample_rate_hz": topic.sample_rate_hz,
        "sample_type": topic.sample_type,
        "channels": topic.channels,
        "streams_complete": status.streams_complete,
        "warnings": warnings(status, retention_ms),
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
                        "unread_ms": group.unread_ms,
                        "unowned": unowned(group),
                        "holds_back": holds_back(group, retention_ms),
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


def _show(status: TopicStatus, retention_ms: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    topic = status.topic
    out.print(
        f"[bold]{escape(topic.name)}[/]  {topic.sample_rate_hz:g} Hz, {topic.channels} x {topic.sample_type}, "
        f"{topic.partitions} partitions",
        highlight=False,
    )
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in ("partition", "chunks", "group", "owner", "epoch", "lag", "oldest", "streams", "results", "dead"):
        table.add_column(name, justify="left" if name in ("group", "owner") else "right", overflow="fold")
    for partition in status.partitions:
        for row in _rows(partition, retention_ms):
            table.add_row(*row)
    out.print(table)
    if not status.streams_complete:
        out.print("streams are counted in part: the server holds more keys than are looked at", style="dim")
    for warning in warnings(status, retention_ms):
        say_warning(warning)


def _rows(partition: PartitionStatus, retention_ms: int) -> Iterator[list[str]]:
    head = [str(partition.partition), str(partition.chunks)]
    if not partition.groups:
        yield [*head, "[dim]none[/]", *[""] * 7]
    for i, group in enumerate(partition.groups):
        yield [*(head if i == 0 else ["", ""]), *_cells(group, retention_ms)]


def _cells(group: GroupStatus, retention_ms: int) -> list[str]:
    from rich.markup import escape

    late = "red" if unowned(group) else "yellow" if holds_back(group, retention_ms) else None
    owner = escape(printable(group.owner)) if group.owner else "nobody" if group.deployment else "-"
    lag = "?" if group.lag is None else str(group.lag)
    oldest = "" if group.unread_ms is None else duration(group.unread_ms)
    return [
        escape(printable(group.group)),
        f"[red]{owner}[/]" if unowned(group) else owner,
        str(group.epoch),
        f"[{late}]{lag}[/]" if late else lag,
        f"[{late}]{oldest}[/]" if late else oldest,
        str(group.streams),
        str(group.results),
        f"[red]{group.dead}[/]" if group.dead else "0",
    ]
