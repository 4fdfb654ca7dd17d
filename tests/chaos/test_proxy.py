"""The proxy's faults are what its table says: seen from a client, and asked of the server behind its back."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.broker.embedded import EmbeddedServer
from tests.harness import until
from tests.redis.proxy import FULL_BYTES, Proxy


@pytest.fixture
def proxy(server: EmbeddedServer, redis_client: redis.Redis) -> Iterator[Proxy]:
    assert redis_client.ping()
    with Proxy(str(server.socket_path)) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=5) as client:
        client.ping()  # connected, so that the next bytes are those of the test
        yield client


@pytest.mark.parametrize(
    ("fault", "executed"),
    [(Proxy.lose_reply, True), (Proxy.cut_reply, True), (Proxy.cut_request, False)],
    ids=["lose_reply", "cut_reply", "cut_request"],
)
def test_a_cut(
    proxy: Proxy, client: redis.Redis, redis_client: redis.Redis, fault: Callable[..., None], executed: bool
) -> None:
    fault(proxy, b"INCR")
    client.set("other", 1)  # does not fit: passes
    with pytest.raises(redis.ConnectionError):
        client.incr("n")
    assert redis_client.get("n") == (b"1" if executed else None)
    assert client.incr("n") == 1 + executed
    assert proxy.happened == {fault.__name__: 1}


def test_a_request_that_comes_in_pieces_is_one(proxy: Proxy, client: redis.Redis, redis_client: redis.Redis) -> None:
    proxy.lose_reply(b"INCR")
    connection = client.connection_pool.get_connection()
    connection.send_packed_command([b"*2\r\n$4\r\nINCR\r\n"])
    with redis.Redis.from_url(proxy.url) as other:
        assert other.ping()  # so the piece has passed: all go through one thread
    connection.send_packed_command([b"$1\r\nn\r\n"])
    with pytest.raises(redis.ConnectionError):
        connection.read_response()
    assert redis_client.get("n") == b"1"


@pytest.mark.parametrize("which", ["request", "reply"])
def test_a_delay_holds_one_connection_and_no_other(proxy: Proxy, client: redis.Redis, which: str) -> None:
    proxy.delay(0.5, which, b"INCR")  # type: ignore[arg-type]
    with redis.Redis.from_url(proxy.url, single_connection_client=True) as other:
        other.ping()
        pool = client.connection_pool.get_connection()
        began_s = time.monotonic()
        pool.send_command("INCR", "n")
        until(lambda: proxy.happened[f"delay_{which}"] == 1, "the delay")
        assert other.ping()
        assert other.get("n") == (b"1" if which == "reply" else None)
        assert time.monotonic() - began_s < 0.5
        assert pool.read_response() == 1
        assert time.monotonic() - began_s >= 0.5
        client.connection_pool.release(pool)


def test_all_are_cut(proxy: Proxy, client: redis.Redis) -> None:
    at = urlsplit(proxy.url)
    with (
        socket.create_connection((at.hostname, at.port)) as one,
        socket.create_connection((at.hostname, at.port)) as two,
    ):
        for each in (one, two):
            each.sendall(b"PING\r\n")
            assert each.recv(100) == b"+PONG\r\n"
        proxy.cut_all()
        for each in (one, two):
            with pytest.raises(ConnectionResetError):
                each.recv(100)
    assert proxy.happened == {"cut_all": 1}
    client.connection_pool.disconnect()  # its own was cut as well, and it may not have noticed yet
    assert client.ping()


def test_who_does_not_read_holds_up_nobody(proxy: Proxy, client: redis.Redis) -> None:
    """As a frozen worker: what it asked for is held up to a bound, the others are served."""
    client.set("big", bytes(FULL_BYTES))
    at = urlsplit(proxy.url)
    with socket.create_connection((at.hostname, at.port)) as frozen:
        for _ in range(5):
            frozen.sendall(b"GET big\r\n")
        for _ in range(50):
            assert client.ping()
        got = 0
        while got < 5 * FULL_BYTES:
            got += len(frozen.recv(1 << 20))


def test_the_server_may_come_and_go(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("gone")
    with (
        Proxy(str(folder / "redis.sock")) as proxy,
        redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0)) as client,
    ):
        with pytest.raises(redis.ConnectionError):
            client.ping()
        with EmbeddedServer(folder, fsync="no"):
            assert client.ping()
        with pytest.raises(redis.ConnectionError):
            client.ping()
