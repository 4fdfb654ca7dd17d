"""The broker's tests run on the embedded server, and on the PATH's redis-server where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys

from . import pair as pairs
from .pair import Pair
from .proxy import Proxy


@pytest.fixture(scope="session", params=["embedded", "redis-server"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    binary = None
    if request.param == "redis-server":
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("no redis-server on the PATH")
    with EmbeddedServer(tmp_path_factory.mktemp("redis"), fsync="no", binary=binary) as server:
        yield server


@pytest.fixture
def keys() -> Keys:
    return Keys("calls", "digits", 3)


@pytest.fixture
def proxy(server: EmbeddedServer, client: redis.Redis, tmp_path: Path) -> Iterator[Proxy]:
    """A way to the (empty) server that can be cut."""
    assert client.ping()
    with Proxy(str(server.socket_path), str(tmp_path / "proxy.sock")) as proxy:
        yield proxy


@pytest.fixture
def client(redis_client: redis.Redis) -> redis.Redis:
    return redis_client


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with pairs.made(tmp_path) as made:
        yield made
