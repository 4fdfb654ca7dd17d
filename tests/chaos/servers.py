"""The server that everything talks to, or a primary and its replica that take over from each other."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import redis

from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from tests.harness import until
from tests.redis.test_cluster import free_port

_AT_ONCE = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}


class Servers:
    """One server, or (`pair`) two of which the second follows the first.

    Example:
        with Servers(folder, pair=True) as servers:
            servers.fail_over(die=True)
    """

    def __init__(self, folder: Path, *, pair: bool) -> None:
        names = ("redis", "replica") if pair else ("redis",)
        self._ports = [free_port() if pair else 0 for _ in names]
        self._servers = [
            EmbeddedServer(folder / name, fsync="always", port=port, settings=_AT_ONCE)
            for name, port in zip(names, self._ports, strict=True)
        ]
        self._clients: list[redis.Redis] = []
        self._primary = 0
        self._exit = contextlib.ExitStack()

    @property
    def client(self) -> redis.Redis:
        """Of the primary."""
        return self._clients[self._primary]

    @property
    def socket(self) -> str:
        """Of the primary."""
        return str(self._servers[self._primary].socket_path)

    def __enter__(self) -> Servers:
        for server in self._servers:
            self._exit.callback(server.close)
            server.start()
            self._clients.append(self._exit.enter_context(connect(server.url)))
        self._follow()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def kill(self) -> Callable[[], object]:
        """SIGKILL the primary. Returns what starts it again on its data."""
        return self._killed(self._primary).start

    def fail_over(self, *, die: bool) -> Callable[[], object]:
        """The replica becomes the primary. The old one is killed, or goes on as a replica that answers.

        What was written to the old one in the meantime, and no replica had confirmed, is gone. Returns what brings the
        old one back.
        """
        # One that has not yet all it was told of would lose what had been confirmed: nobody would choose it.
        until(lambda: self._clients[1 - self._primary].info("replication")["master_link_status"] == "up", "a replica")
        old, self._primary = self._primary, 1 - self._primary
        killed = self._killed(old) if die else None
        self.client.execute_command("REPLICAOF", "NO", "ONE")

        def back() -> None:
            if killed is not None:
                killed.start()
            self._follow()

        return back

    def _killed(self, which: int) -> EmbeddedServer:
        server = self._servers[which]
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.close()
        return server

    def _follow(self) -> None:
        for n, client in enumerate(self._clients):
            if n != self._primary:
                client.execute_command("REPLICAOF", "127.0.0.1", self._ports[self._primary])
