"""Trimming: by age, but never before the slowest group, and never by deleting a log (that forgets its last id)."""

from __future__ import annotations

from collections.abc import Sequence

import redis

from pipeline.broker.functions import call
from pipeline.broker.keys import Keys, log_key


def trim(
    client: redis.Redis,
    topic: str,
    partition: int,
    groups: Sequence[str],
    retention_ms: int,
    results_retention_ms: int,
) -> tuple[int, int]:
    """Remove chunks older than `retention_ms` that every group has committed, and the results and dead letters of
    `groups` older than `results_retention_ms`, by the server's clock. A group that never read keeps everything; so
    does a topic without any group. Returns how many (chunks, results and dead letters) went.

    Raises:
        BrokerUnavailable: no answer; call again.
        ConfigError: a key is no log.
    """
    logs = [log for group in groups for keys in [Keys(topic, group, partition)] for log in (keys.out, keys.dead)]
    chunks, results = call(client, "sb_trim", [log_key(topic, partition), *logs], [retention_ms, results_retention_ms])
    return int(chunks), int(results)
