"""What several tests of the broker do."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys
from pipeline.broker.lease import Granted, acquire

LEASE_MS = 60_000


def ids_of(first: int, last: int) -> list[bytes]:
    return [f"{i}-0".encode() for i in range(first, last + 1)]


def push(client: redis.Redis, keys: Keys, ids: Iterable[bytes]) -> None:
    """Chunks under ids of the test's choosing."""
    with client.pipeline(transaction=False) as pipe:
        for id_ in ids:
            pipe.xadd(keys.log, {"stream": "s", "seq": "0", "data": "x"}, id=id_)
        pipe.execute()


def grant(client: redis.Redis, keys: Keys, owner: str = "a") -> Granted:
    granted = acquire(client, keys, owner, LEASE_MS)
    assert isinstance(granted, Granted)
    return granted


def everything(client: redis.Redis) -> dict[bytes, Any]:
    """All that the server holds, byte for byte (but for TTLs)."""
    return {key: client.dump(key) for key in client.keys("*")}


def lag(client: redis.Redis, keys: Keys) -> Any:
    return next(info["lag"] for info in client.xinfo_groups(keys.log) if info["name"] == keys.group.encode())


def offset(client: redis.Redis, keys: Keys) -> Any:
    return next(
        info["last-delivered-id"] for info in client.xinfo_groups(keys.log) if info["name"] == keys.group.encode()
    )


@contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    """It takes what is sent, and answers nothing."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)
