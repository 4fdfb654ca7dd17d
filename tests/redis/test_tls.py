"""TLS: rediss:// checks whom it talks to, says what is wrong, and carries the whole work byte for byte."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from pipeline.broker.connection import check_server, connect, connect_async, shown, translate
from pipeline.broker.embedded import EmbeddedServer
from pipeline.consumer import Consumer
from pipeline.errors import BrokerUnavailable, ConfigError
from pipeline.producer import Producer
from pipeline.settings import load_settings
from pipeline.worker import Worker
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, lively, make_producer, random_cut, worker


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass(frozen=True)
class Tls:
    """A server that takes TLS alone (and asks for client certificates), and the files to reach it with."""

    port: int
    folder: Path
    server: EmbeddedServer

    def url(
        self, host: str = "localhost", ca: str | None = "ca", certificate: str | None = "client", **more: str
    ) -> str:
        given = dict(more)
        if ca:
            given["ssl_ca_certs"] = str(self.folder / f"{ca}.pem")
        if certificate:
            given["ssl_certfile"] = given["ssl_keyfile"] = str(self.folder / f"{certificate}.pem")
        given |= more
        return f"rediss://{host}:{self.port}?" + "&".join(f"{k}={v}" for k, v in given.items())


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on the PATH (the embedded server has no TLS)")
    folder, ca, other = tmp_path_factory.mktemp("tls"), trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    other.cert_pem.write_to_path(str(folder / "other-ca.pem"))
    for name, issued in (
        ("server", ca.issue_cert("localhost")),
        ("client", ca.issue_cert("worker@statebelt")),
        ("stranger", other.issue_cert("stranger@elsewhere")),
    ):
        issued.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{name}.pem"))
    (folder / "no-certificate.pem").write_text("hello")
    port = free_port()
    settings = {
        "tls-port": str(port),
        "tls-cert-file": str(folder / "server.pem"),
        "tls-key-file": str(folder / "server.pem"),
        "tls-ca-cert-file": str(folder / "ca.pem"),
    }
    with EmbeddedServer(folder / "data", fsync="no", binary=binary, settings=settings) as server:
        yield Tls(port, folder, server)


REFUSED: dict[str, tuple[dict[str, str | None], str]] = {
    "a server of another authority": ({"ca": "other-ca"}, "server's certificate is not good.*ssl_ca_certs"),
    "an authority that nobody named": ({"ca": None}, "server's certificate is not good.*ssl_ca_certs"),
    "another host's certificate": (
        {"host": "127.0.0.1"},
        "server's certificate is not good.*IP address mismatch.*host",
    ),
    "a file that is not there": ({"ca": "nowhere"}, "no usable Redis URL.*nowhere.pem"),
    "a file that is no certificate": ({"ca": "no-certificate"}, "no usable Redis URL"),
    "a client's file that is no certificate": ({"certificate": "no-certificate"}, "no usable Redis URL"),
    "a key without a certificate": ({"certificate": None, "ssl_keyfile": "/dev/null"}, "ssl_certfile: give both"),
    "an unknown parameter": ({"ssl_cacerts": "x"}, "no usable Redis URL.*ssl_cacerts"),
    "an unknown value": ({"ssl_cert_reqs": "perhaps"}, "no usable Redis URL.*perhaps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_once(tls: Tls, case: str) -> None:
    options, said = REFUSED[case]
    with pytest.raises(ConfigError, match=said), connect(tls.url(**options)) as client:
        check_server(client)

    async def later() -> None:
        client = connect_async(tls.url(**options))
        try:
            with translate():
                await client.ping()
        finally:
            await client.aclose()

    with pytest.raises(ConfigError, match=said):
        asyncio.run(later())


@pytest.mark.parametrize("certificate", [None, "stranger"])
def test_a_client_that_the_server_does_not_know(tls: Tls, certificate: str | None) -> None:
    """The server's refusal can be lost in its hanging up (TLS 1.3 tells it after the handshake): then a hint."""
    with (
        pytest.raises((ConfigError, BrokerUnavailable), match="ssl_certfile"),
        connect(tls.url(certificate=certificate)) as client,
    ):
        check_server(client)


def test_tls_to_a_port_without() -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            with plain.accept()[0] as peer:
                peer.recv(1)
                peer.sendall(b"-ERR unknown command\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"rediss://localhost:{plain.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"does not speak TLS.*redis://"), connect(url) as client:
            check_server(client)


def test_a_server_that_goes_away_within_the_handshake_is_waited_for(tls: Tls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dying:
        threading.Thread(target=lambda: dying.accept()[0].close(), daemon=True).start()
        url = tls.url().replace(str(tls.port), str(dying.getsockname()[1]))
        with pytest.raises(BrokerUnavailable), connect(url) as client:
            check_server(client)


def test_a_name_that_does_not_fit_only_if_told_so(tls: Tls) -> None:
    with connect(tls.url(host="127.0.0.1", ssl_check_hostname="false")) as client:
        assert check_server(client).startswith("Redis")


def test_worker_producer_and_consumer_refuse_to_start(tls: Tls) -> None:
    """At once: a worker waits for a server that is away, never for a certificate to change."""
    url, began_s = tls.url(ca="other-ca"), time.monotonic()
    bundle = zoo.bundle("sensor")
    with pytest.raises(ConfigError, match="certificate"):
        Worker(load_settings(url=url, lease_ms=60_000), bundle=bundle).run()
    with pytest.raises(ConfigError, match="certificate"):
        Producer("audio", url=url, sample_rate_hz=50)
    with pytest.raises(ConfigError, match="certificate"):
        Consumer("audio", "digits", url=url)
    assert time.monotonic() - began_s < 10


def test_all_of_it_over_tls(tls: Tls) -> None:
    bundle, signals = zoo.bundle("sensor"), lively(zoo.bundle("sensor"), 6, blocks=30)
    with connect(tls.server.url) as client:
        client.flushall()
    with (
        make_producer(tls.url(), bundle) as producer,
        Consumer("audio", "digits", url=tls.url(), start="beginning") as consumer,
        worker(tls.url(), bundle),
    ):
        for batch in cut_up(bundle, signals, random_cut):
            producer.push_many(batch)
        found = collect(consumer, list(signals))
        with connect(tls.server.url) as client:  # nobody but this one came in another way
            others = [
                one for one in client.client_list() if one["name"] == "statebelt" and "redis.sock" not in one["addr"]
            ]
            assert len(others) >= 3
    assert_exact(bundle, signals, found)


@pytest.mark.parametrize("url", ["redis://localhost:1", "unix:///nowhere", "rediss://localhost:1"])
def test_who_names_no_certificate_waits_for_none_to_be_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system's hundreds of authorities take 30 ms to be read, and every client of every process would."""

    def read(*_: object) -> None:
        raise AssertionError("the system's authorities were read")

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", read)
    connect(url).close()
    asyncio.run(connect_async(url).aclose())


def test_passwords_are_not_shown() -> None:
    url = "rediss://worker:secret@host:1/0?ssl_password=hidden&ssl_ca_certs=ca.pem"
    assert shown(url) == "rediss://worker:***@host:1/0?ssl_password=***&ssl_ca_certs=ca.pem"
