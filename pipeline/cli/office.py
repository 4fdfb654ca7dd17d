"""Where the dead letters of one group lie, and how a letter is named on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.cli.plain import printable

if TYPE_CHECKING:
    from pipeline.broker.dead import Brief, Client, DeadLetter
    from pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class Office:
    """Where the letters of one group lie."""

    client: Client
    settings: Settings
    topic: str
    group: str
    partitions: int

    def chosen(
        self, reason: str | None, stream: str | None, partition: int | None, after: tuple[int, bytes] = (0, b"0-0")
    ) -> Iterator[list[Brief]]:
        """Pages of letters that the filters leave, from behind a letter on."""
        from pipeline.broker.dead import briefs

        self.check(partition)
        first = after[0] if partition is None else max(after[0], partition)
        last = self.partitions if partition is None else partition + 1
        yield from briefs(
            self.client,
            self.topic,
            self.group,
            range(first, last),
            after=after[1] if first == after[0] else b"0-0",
            reason=reason or "",
            stream=(stream or "").encode(errors="surrogateescape"),
        )

    def check(self, partition: int | None) -> None:
        """Raises ConfigError for a partition that the topic does not have."""
        from pipeline.errors import ConfigError

        if partition is not None and partition >= self.partitions:
            raise ConfigError(f"topic {self.topic!r} has partitions 0 to {self.partitions - 1}, not {partition}")

    def check_group(self) -> None:
        """Raises ConfigError when nobody ever worked under that name: no letters would then mean nothing."""
        from pipeline.errors import ConfigError

        if (missing := no_group(self.client, self.topic, self.partitions, self.group)) is not None:
            raise ConfigError(f"{missing}. Name it")

    def letter(self, id_: str) -> DeadLetter | None:
        """One letter whole. Raises ConfigError for what is no ID."""
        from pipeline.broker.dead import letter

        partition, entry = parse_id(id_)
        self.check(partition)
        return letter(self.client, self.topic, self.group, partition, entry)

    def now_ms(self) -> int:
        """The server's clock, by which ids are given."""
        from pipeline.broker.dead import clock_ms

        return clock_ms(self.client)


def no_group(client: Client, topic: str, partitions: int, group: str) -> str | None:
    """Nobody ever worked under that name on any partition: a sentence without its stop that tells who did. Else None.

    Raises:
        BrokerUnavailable: no answer; call again.
        ConfigError: this user may not ask.
    """
    from pipeline.broker.keys import is_rows_group, log_key
    from pipeline.broker.retention import groups_of

    logs = [log_key(topic, p) for p in range(partitions)]
    names = {name for log in logs for name in groups_of(client, log) if not is_rows_group(name)}
    if group.encode() in names:
        return None
    there = ", ".join(sorted(printable(name) for name in names)) or "none yet"
    return f"no group {group!r} works on topic {topic!r}; there are: {there}"


@contextmanager
def office_of(topic: str | None, group: str | None, url: str | None) -> Iterator[Office]:
    """The office of a group of an existing topic, connected. Raises ConfigError, BrokerUnavailable."""
    from pipeline.broker.connection import connect
    from pipeline.broker.keys import check_name
    from pipeline.broker.topic import describe
    from pipeline.cli.reach import reach
    from pipeline.errors import ConfigError
    from pipeline.settings import load_settings

    given = load_settings(topic=topic, group=group, url=url)
    check_name("group", given.group)
    with closing(connect(reach(given))) as client:
        found = describe(client, given.topic)
        if found is None:
            raise ConfigError(f"there is no topic {given.topic!r}; `statebelt topics` lists them")
        yield Office(client, given, given.topic, given.group, found.partitions)


def parse_id(id_: str) -> tuple[int, bytes]:
    """A letter's ID, `<partition>:<id of its chunk>`.

    >>> parse_id("3:1700000000000-0")
    (3, b'1700000000000-0')
    """
    from pipeline.errors import ConfigError

    partition, _, entry = id_.partition(":")
    ms, _, seq = entry.partition("-")
    if all(part.isascii() and part.isdigit() and len(part) <= 20 for part in (partition, ms, seq)):
        canonical = (int(ms), int(seq))
        if max(canonical) < 2**64:
            return int(partition), b"%d-%d" % canonical
    raise ConfigError(
        f"{printable(id_)!r} is no ID of a dead letter; expected one as 3:1700000000000-0: "
        "the first column of `statebelt dead list`, or `letter` in its JSON"
    )


def id_of(letter: Brief | DeadLetter) -> str:
    """A letter's ID, to be copied."""
    return f"{letter.partition}:{letter.id.decode()}"
