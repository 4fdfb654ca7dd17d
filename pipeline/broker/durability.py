"""What an acknowledged write survives: three levels, and whether this server is set up for the one that was chosen.

| level      | the server                 | a killed server loses | a power loss loses | a failover loses            |
|------------|----------------------------|-----------------------|--------------------|-----------------------------|
| fast       | AOF, fsync every second    | nothing, as a rule    | a second or two    | what was not yet replicated |
| durable    | AOF, fsync always          | nothing               | nothing            | what was not yet replicated |
| replicated | the same, `WAIT 1`         | nothing               | nothing            | nothing, to that replica    |

Whatever is lost, is lost as one: chunks, state, offset and results of a partition roll back together. "As a rule":
while a background fsync is slow, a server with `everysec` postpones the write itself for up to two seconds and answers
all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import redis

from pipeline.broker.connection import translate
from pipeline.errors import BrokerUnavailable, ConfigError

Level = Literal["fast", "durable", "replicated"]


@dataclass(frozen=True, slots=True)
class Durability:
    """How the server is set up. `fsync` is None where this user may not ask."""

    aof: bool
    fsync: str | None
    replicas: int


def durability(client: redis.Redis) -> Durability:
    """Ask the server.

    Raises:
        BrokerUnavailable: no answer, or the server is still loading; call again.
    """
    with translate():
        persistence = client.info("persistence")
        if persistence.get("loading"):  # it then says that it has no AOF, whatever it is set up for (chaos found it so)
            raise BrokerUnavailable("the server is still loading its data: wait")
        replicas = int(client.info("replication").get("connected_slaves", 0))
        aof, fsync = bool(persistence.get("aof_enabled")), None
        try:
            told = client.config_get("append*")
        except redis.ResponseError:  # a worker's user need not have this permission
            pass
        else:
            aof, fsync = told.get("appendonly") == "yes", told.get("appendfsync")
    return Durability(aof, fsync, replicas)


def check_durability(client: redis.Redis, level: Level) -> list[str]:
    """Refuse a server that cannot keep what `level` promises. Returns what a person should be warned of.

    Raises:
        ConfigError: durable or replicated without AOF, or with another fsync policy than `always`.
        BrokerUnavailable: no answer; call again.
    """
    found = durability(client)
    if level == "fast":
        return [] if found.aof else ["the server keeps no append-only file: its restart loses everything"]
    if not found.aof or found.fsync not in ("always", None):
        raise ConfigError(
            f"durability {level!r}: the server has appendonly {'yes' if found.aof else 'no'}, "
            f"appendfsync {found.fsync or 'unknown'}; expected appendonly yes, appendfsync always. "
            "Set them (`statebelt redis --fsync always`), or choose durability fast"
        )
    warnings = []
    if found.fsync is None:
        warnings.append("this user may not ask for appendfsync: whether it is `always` is not known")
    if level == "replicated" and not found.replicas:
        warnings.append("no replica is connected: commits wait for one")
    return warnings
