"""Letting go of a server that is not the primary any more, though it lives and answers.

After a planned failover the old primary goes on as a replica. Its answers are errors, not lost connections: a pool
would keep the connections, and what the name in the URL leads to now would never be asked again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import redis
import redis.asyncio

_ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "MOVED", "UNBLOCKED"})
"""Answers of a server that is not, or no longer, the one to ask. (UNBLOCKED: it became a replica during a read.)"""


def code_of(error: Exception) -> str:
    """The word by which Redis names an error; `ERR` is not told, there it is the first word of the text.

    >>> code_of(redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"))
    'WRONGTYPE'
    >>> code_of(redis.ResponseError("WAIT cannot be used with replica instances."))
    'READONLY'
    """
    text = str(error)
    if text.startswith("WAIT cannot be used with replica"):  # an ERR like many; it means what READONLY means
        return "READONLY"
    return getattr(error, "status_code", None) or text.split(" ", 1)[0]


class _Watched:
    """Mixed into the connections of one pool."""

    pool: redis.ConnectionPool

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except redis.ResponseError as error:
            if code_of(error) in _ELSEWHERE:
                self.let_go()
            raise

    def let_go(self) -> None:
        """End all connections. Those in use may still have replies to come: they end when they are given back."""
        self.pool.update_active_connections_for_reconnect()
        self.pool.disconnect(inuse_connections=False)


class _AsyncWatched:
    """The same for asyncio."""

    pool: redis.asyncio.ConnectionPool

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except redis.ResponseError as error:
            if code_of(error) in _ELSEWHERE:
                await self.let_go()
            raise

    async def let_go(self) -> None:
        await self.pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
        await self.pool.disconnect(inuse_connections=False)


def watch(pool: redis.ConnectionPool | redis.asyncio.ConnectionPool) -> None:
    """From now on one answer of a wrong server ends all connections of this pool, and the next are made anew."""
    mixin = _Watched if isinstance(pool, redis.ConnectionPool) else _AsyncWatched
    pool.connection_class = type(mixin.__name__, (mixin, pool.connection_class), {"pool": pool})


ASK = ("INFO", "replication")


class History:
    """Which history of the data a client knows, and whether a server has another.

    A server names its history by a replication ID, and takes a new one when it starts and when it takes over from its
    primary (Redis manual, "Replication ID explained"). What was read under one is worth nothing under another: where
    two servers were primaries for a while, the same id of an entry may stand for two chunks. So a client that is given
    one of these is refused new connections to a server of another history, until its owner has let go of all it has
    read, and says so.

    Args:
        replicas: whether they are good enough. They name their primary's history, and may lag behind it.
    """

    def __init__(self, *, replicas: bool = False) -> None:
        self._known = self._met = ""
        self._replicas = replicas
        self._lock = threading.Lock()  # connections are made by several threads

    @property
    def changed(self) -> bool:
        """Whether the last server that was met has another history than the one that is known."""
        return self._met != self._known

    def accept(self) -> None:
        """Nothing that was read before is kept: go on with the server that was met last."""
        with self._lock:
            self._known = self._met

    def watch(self, pool: redis.ConnectionPool | redis.asyncio.ConnectionPool) -> None:
        """From now on every new connection of this pool, which is `watch`ed already, is met first."""
        meet = self._meet if isinstance(pool, redis.ConnectionPool) else self._meet_async
        pool.connection_kwargs["redis_connect_func"] = meet

    def check(self, reply: Any) -> None:
        """Judge by what a server answered to ASK: for a connection that was there before its server changed.

        Raises redis.ConnectionError: a replica where none is good enough, or another history.
        """
        if wrong := self._wrong(reply):
            raise redis.ConnectionError(wrong)

    def _meet(self, connection: Any) -> None:
        connection.on_connect()
        connection.send_command(*ASK)
        try:
            reply = connection.read_response()
        except redis.ResponseError:  # who may not ask has to trust
            return
        if wrong := self._wrong(reply):
            connection.let_go()
            raise redis.ConnectionError(wrong)

    async def _meet_async(self, connection: Any) -> None:
        await connection.on_connect()
        await connection.send_command(*ASK)
        try:
            reply = await connection.read_response()
        except redis.ResponseError:
            return
        if wrong := self._wrong(reply):
            await connection.let_go()
            raise redis.ConnectionError(wrong)

    def _wrong(self, reply: Any) -> str:
        """What is wrong with the server that says this, beginning with the word for `translated`; or nothing."""
        if isinstance(reply, Exception):
            return ""
        if not isinstance(reply, Mapping):
            told = reply.decode() if isinstance(reply, bytes) else str(reply)
            reply = dict(line.partition(":")[::2] for line in told.split())
        if not self._replicas and reply.get("role") == "slave":
            return "READONLY it says so"
        with self._lock:
            met = str(reply.get("master_replid", self._met))  # a server that names none is trusted
            self._met, self._known = met, self._known or met
            return f"HISTORY {met}, until now it was {self._known}" if met != self._known else ""
