"""Letting go of a server that is not the primary any more, though it lives and answers.

After a planned failover the old primary goes on as a replica. Its answers are errors, not lost connections: a pool
would keep the connections, and what the name in the URL leads to now would never be asked again.
"""

from __future__ import annotations

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
                # Those in use, this one among them, may still have replies to come: they end when they are given back.
                self.pool.update_active_connections_for_reconnect()
                self.pool.disconnect(inuse_connections=False)
            raise


class _AsyncWatched:
    """The same for asyncio."""

    pool: redis.asyncio.ConnectionPool

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except redis.ResponseError as error:
            if code_of(error) in _ELSEWHERE:
                await self.pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
                await self.pool.disconnect(inuse_connections=False)
            raise


def watch(pool: redis.ConnectionPool | redis.asyncio.ConnectionPool) -> None:
    """From now on one answer of a wrong server ends all connections of this pool, and the next are made anew."""
    mixin = _Watched if isinstance(pool, redis.ConnectionPool) else _AsyncWatched
    pool.connection_class = type(mixin.__name__, (mixin, pool.connection_class), {"pool": pool})
