"""A primary and its replica, and a name that leads to one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from tests.harness import until

from .proxy import Proxy
from .test_cluster import free_port


@dataclass
class Pair:
    """Two servers, a primary and its replica, and a name that leads to one of them."""

    servers: tuple[EmbeddedServer, EmbeddedServer]
    ports: tuple[int, int]
    clients: tuple[redis.Redis, redis.Redis]
    proxy: Proxy

    @property
    def url(self) -> str:
        return self.proxy.url

    def fail_over(self, *, renamed: bool = True) -> None:
        """The second becomes the primary, the first its replica, which keeps all its connections."""
        one, two = self.clients
        two.execute_command("REPLICAOF", "NO", "ONE")
        one.execute_command("REPLICAOF", "127.0.0.1", self.ports[1])
        until(lambda: in_step(one), "the old primary to follow the new one")
        if renamed:
            self.proxy.lead_to(str(self.servers[1].socket_path))


def in_step(replica: redis.Redis) -> bool:
    return bool(replica.info("replication").get("master_link_status") == "up")


@contextmanager
def made(tmp_path: Path) -> Iterator[Pair]:
    """Both of them, in step."""
    ports = free_port(), free_port()
    fast = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(EmbeddedServer(tmp_path / name, fsync="always", port=port, settings=fast))
            for name, port in zip(("one", "two"), ports, strict=True)
        )
        clients = stack.enter_context(connect(one.url)), stack.enter_context(connect(two.url))
        clients[1].execute_command("REPLICAOF", "127.0.0.1", ports[0])
        until(lambda: in_step(clients[1]), "the replica to follow")
        proxy = stack.enter_context(Proxy(str(one.socket_path), str(tmp_path / "proxy.sock")))
        yield Pair((one, two), ports, clients, proxy)
