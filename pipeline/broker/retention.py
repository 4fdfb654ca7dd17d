"""Trimming: by age, but never before the slowest group, and never by deleting a log (that forgets its last id).

Two clocks. A chunk's age is that of its id: it was pushed then. A result has its chunk's id, yet may be published long
after, when workers were away: its age is counted from when the group's offset passed it, which each trim marks (one
key a group and partition, a few hundred bytes). So a result is kept for the retention at least, and for a sixteenth
more at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import redis

from pipeline.broker.connection import no_key, raise_first
from pipeline.broker.functions import Call
from pipeline.broker.keys import ROWS_SUFFIX, Keys, log_key
from pipeline.broker.later import Later


def marks_key(keys: Keys) -> str:
    """The key of where a group stood at past trims: text, `ms id ms id ...`. It expires when nobody trims.

    >>> marks_key(Keys("calls", "digits", 3))
    'sb:{calls/3}:digits:marks'
    """
    return keys.out.removesuffix("out") + "marks"


def groups_of(client: redis.Redis, log: str) -> list[bytes]:
    """The names of all groups on a log, none when there is no log; those where rows stand (`is_rows_group`) among
    them. Raises as `trim`."""
    return Later(client, [], [("XINFO", "GROUPS", log)], _names).answer()


def _names(replies: list[Any]) -> list[bytes]:
    (infos,) = replies
    return [] if no_key(infos) else [info[b"name"] for info in raise_first([infos])[0]]


def trim(
    client: redis.Redis,
    topic: str,
    partition: int,
    groups: Sequence[str],
    retention_ms: int,
    results_retention_ms: int,
    outage_ms: int | None = None,
) -> tuple[int, int]:
    """Remove what is too old by the server's clock: chunks of a partition, results and dead letters of `groups`.

    Args:
        retention_ms: chunks are kept at least so long, and until every group (not only `groups`) has committed them.
        results_retention_ms: results and dead letters are kept so long after they were published.
        outage_ms: a group for whose partition nobody holds the lease keeps chunks only this long (None: for ever);
            one whose worker is alive keeps them all, however late it is. What was trimmed unread is no longer counted
            in the group's lag; when it comes back, its streams report a gap by their `seq`.
    Returns:
        How many (chunks, results and dead letters) went. Without any group on the topic nothing goes.
    Raises:
        BrokerUnavailable: no answer; call again.
        ConfigError: a key is no log, or a retention is below zero.

    Example:
        trim(client, "calls", 3, ["digits"], 60_000, 86_400_000, 86_400_000)
    """
    known = {partition: groups_of(client, log_key(topic, partition))}
    ages_ms = Ages(retention_ms, results_retention_ms, outage_ms)
    trimmed = trimming(client, topic, known, groups, ages_ms).answer()[partition]
    return trimmed.chunks, trimmed.results


class Ages(NamedTuple):
    """How long things are kept, in ms; as `trim` has it."""

    chunks: int
    results: int
    outage: int | None = None


class Trimmed(NamedTuple):
    """How many chunks, and results and dead letters, went; the names of all groups on the log, for the next time."""

    chunks: int
    results: int
    known: list[bytes]


def trimming(
    client: redis.Redis, topic: str, known: Mapping[int, Sequence[bytes]], groups: Sequence[str], ages_ms: Ages
) -> Later[dict[int, Trimmed]]:
    """`trim` of several partitions, whose answer is taken later.

    Args:
        known: of each partition the names of all groups on its log, as far as is known. Where nobody works for a group,
            and it is not among them, it keeps its chunks.
    """

    def trimmed(replies: list[Any]) -> dict[int, Trimmed]:
        counts, infos = raise_first(replies[: len(known)]), replies[len(known) :]
        return {
            partition: Trimmed(int(chunks), int(results), [] if isinstance(told, Exception) else _names([told]))
            for partition, (chunks, results), told in zip(known, counts, infos, strict=True)
        }

    calls = [_call(topic, partition, names, groups, ages_ms) for partition, names in known.items()]
    return Later(client, calls, [("XINFO", "GROUPS", log_key(topic, partition)) for partition in known], trimmed)


def _call(topic: str, partition: int, known: Sequence[bytes], groups: Sequence[str], ages_ms: Ages) -> Call:
    log, keys = log_key(topic, partition), [Keys(topic, group, partition) for group in groups]
    outage_ms = -1 if ages_ms.outage is None else ages_ms.outage
    return Call(
        "sb_trim",
        [
            log,
            *[_lease_key(log, name) for name in known],
            *[key for of in keys for key in (of.out, of.dead, marks_key(of))],
        ],
        [ages_ms.chunks, ages_ms.results, outage_ms, len(known), *known, *groups],
    )


def _lease_key(log: str, group: bytes) -> str:
    # Not by `Keys`: anybody may have made a group on our log, under a name that would not do for a deployment.
    # Where rows stand, the deployment's own lease tells whether anybody works there.
    return f"{log.removesuffix('in')}{group.decode(errors='replace').removesuffix(ROWS_SUFFIX)}:lease"
