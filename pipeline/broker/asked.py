"""Commands that go out as one piece, and their replies."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import redis

from pipeline.broker.resp import Command, pack

_SEND_BYTES = 2 << 20
"""Some 500 rows of 3.6 KB. Linux gives twice `net.core.wmem_max` at most: by default 115 rows, twice what it was."""


class Busy(redis.Redis):
    """A client that asks all the time. Between two questions its connections stay out of the pool: to get one from
    there, looked at whether it still lives, and to give it back takes longer than a small question."""

    _AT_HAND_S = 1.0  # longer ago, the server may have ended it

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._at_hand: list[tuple[Any, float]] = []

    def take_connection(self) -> Any:
        while True:
            try:
                connection, since_s = self._at_hand.pop()
            except IndexError:  # nothing is at hand, or another thread was quicker
                connection = self.connection_pool.get_connection()
                _make_room(connection)
                return connection
            fresh = time.monotonic() - since_s < self._AT_HAND_S and connection.pid == os.getpid()
            if fresh and not connection.should_reconnect():
                return connection
            self.connection_pool.release(connection)

    def give_connection(self, connection: Any) -> None:
        self._at_hand.append((connection, time.monotonic()))

    def doubt(self) -> None:
        """A connection broke: others may have. Those at hand go to the pool, which looks at them."""
        with contextlib.suppress(IndexError):
            while True:
                self.connection_pool.release(self._at_hand.pop()[0])


def _make_room(connection: Any) -> None:
    """Let a unix socket hold all of a commit (TCP sees to that by itself), as far as the system allows: what does not
    fit is sent on only as the server takes it, which has others to serve as well, and who sends could be computing."""
    sock = connection._sock
    if sock is not None and sock.family == socket.AF_UNIX:
        with contextlib.suppress(OSError):  # some systems refuse what is too much for them
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)


class Asked:
    """Commands that were sent, as one piece, and whose replies are still to be read.

    Each reply is a value, or the exception of that command alone. Where the connection broke, making it, `ready` and
    `replies` raise redis.RedisError, and it is over. Whoever does not want the replies calls `drop`.
    """

    def __init__(self, client: redis.Redis, commands: Sequence[Command]) -> None:
        packed = pack(commands)
        self._client, self._count = client, len(commands)
        self._connection: Any = (
            client.take_connection() if isinstance(client, Busy) else client.connection_pool.get_connection()
        )
        with self._unbroken():
            self._connection.send_packed_command([packed])

    def ready(self, timeout_s: float) -> bool:
        """Wait so long for the first reply. Returns whether it, or its beginning, is there."""
        with self._unbroken():
            return bool(self._connection.can_read(timeout_s))

    def replies(self) -> list[Any]:
        """Wait for them; once."""
        found: list[Any] = []
        with self._unbroken():
            for _ in range(self._count):
                try:
                    found.append(self._connection.read_response())
                except redis.ResponseError as error:
                    found.append(error)
        if isinstance(self._client, Busy):
            self._client.give_connection(self._connection)
        else:
            self._client.connection_pool.release(self._connection)
        return found

    def interrupt(self) -> None:
        """End the waiting of another thread, in `replies`, as if the connection had broken. For when nobody else asks:
        should the replies have come this moment, the connection may be used by who does."""
        self._connection.disconnect()

    def drop(self) -> None:
        """Let go of the replies."""
        self._connection.disconnect()
        self._client.connection_pool.release(self._connection)
        if isinstance(self._client, Busy):
            self._client.doubt()

    @contextlib.contextmanager
    def _unbroken(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # Ctrl-C, say: replies that were not read would pass for those of the next commands.
            self.drop()
            raise


class AskedApart:
    """Commands as `Asked`, each share of them on a connection of its own; the replies are those of all, in order.

    For answers that are large: a server sends 64 KB of one at a time, and serves others (a commit, say) before it goes
    on; a unix socket takes no more before that was read. Over several connections it sends so much on each. Where one
    breaks, all are let go of. Where there are not so many to be had (`maxclients`), one takes all: whoever asks needs
    one for other things, too.
    """

    def __init__(self, client: redis.Redis, shares: Sequence[Sequence[Command]]) -> None:
        self._asked: list[Asked] = []
        try:
            with self._whole():
                for share in shares:
                    self._asked.append(Asked(client, share))
        except redis.ConnectionError:
            self._asked = [Asked(client, [command for share in shares for command in share])]

    def ready(self, timeout_s: float) -> bool:
        """Wait so long for the first reply of each. Returns whether they, or their beginnings, are there."""
        until_s = time.monotonic() + timeout_s
        for asked in self._asked:
            with self._whole(asked):
                if not asked.ready(max(0.0, until_s - time.monotonic())):
                    return False
        return True

    def replies(self) -> list[Any]:
        """Wait for them; once."""
        found: list[Any] = []
        while self._asked:
            with self._whole(self._asked[0]):
                found += self._asked[0].replies()
            del self._asked[0]
        return found

    def interrupt(self) -> None:
        """As `Asked.interrupt`."""
        for asked in list(self._asked):
            asked.interrupt()

    def drop(self) -> None:
        """Let go of the replies."""
        left, self._asked = self._asked, []
        for asked in left:
            asked.drop()

    @contextlib.contextmanager
    def _whole(self, used: Asked | None = None) -> Iterator[None]:
        """What fails lets go of its own connection by itself."""
        try:
            yield
        except BaseException:
            self._asked = [asked for asked in self._asked if asked is not used]
            self.drop()
            raise


def round_trip(client: redis.Redis, commands: Sequence[Command]) -> list[Any]:
    """Run commands in one round trip: `Asked`, at once.

    As a pipeline, without its callbacks and its many small writes. Raises redis.RedisError where the connection broke.
    """
    return Asked(client, commands).replies()
