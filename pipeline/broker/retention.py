"""Trimming: by age, but never before the slowest group, and never by deleting a log (that forgets its last id).

Two clocks. A chunk's age is that of its id: it was pushed then. A result has its chunk's id, yet may be published long
after, when workers were away: its age is counted from when the group's offset passed it, which each trim marks (one
key a group and partition, a few hundred bytes). So a result is kept for the retention at least, and for a sixteenth
more at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import redis

from pipeline.broker.connection import no_key, raise_first, translate
from pipeline.broker.functions import call
from pipeline.broker.keys import ROWS_SUFFIX, Keys, log_key


def marks_key(keys: Keys) -> str:
    """The key of where a group stood at past trims: text, `ms id ms id ...`. It expires when nobody trims.

    >>> marks_key(Keys("calls", "digits", 3))
    'sb:{calls/3}:digits:marks'
    """
    return keys.out.removesuffix("out") + "marks"


def groups_of(client: redis.Redis, log: str) -> list[bytes]:
    """The names of all groups on a log, none when there is no log; those where rows stand (`is_rows_group`) among
    them. Raises as `trim`."""
    with translate(), client.pipeline(transaction=False) as pipe:
        pipe.xinfo_groups(log)
        (infos,) = pipe.execute(raise_on_error=False)
    if no_key(infos):
        return []
    return [info["name"] for info in raise_first([infos])[0]]


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
    log = log_key(topic, partition)
    known = groups_of(client, log)
    keys = [Keys(topic, group, partition) for group in groups]
    chunks, results = call(
        client,
        "sb_trim",
        [
            log,
            *[_lease_key(log, name) for name in known],
            *[key for of in keys for key in (of.out, of.dead, marks_key(of))],
        ],
        [retention_ms, results_retention_ms, -1 if outage_ms is None else outage_ms, len(known), *known, *groups],
    )
    return int(chunks), int(results)


def _lease_key(log: str, group: bytes) -> str:
    # Not by `Keys`: anybody may have made a group on our log, under a name that would not do for a deployment.
    # Where rows stand, the deployment's own lease tells whether anybody works there.
    return f"{log.removesuffix('in')}{group.decode(errors='replace').removesuffix(ROWS_SUFFIX)}:lease"
