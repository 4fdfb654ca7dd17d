"""The same code on a server in cluster mode: every call stays within one slot."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from pipeline.broker import admin, topic
from pipeline.broker.appender import Appender, Pushed, backlog
from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.entries import fields_of
from pipeline.broker.keys import Keys
from pipeline.broker.lease import release, renew
from pipeline.broker.partition import Commit, commit_many, load_rows
from pipeline.broker.reader import Ahead, read
from pipeline.broker.results import ResultReader
from pipeline.broker.retention import trim

from .helpers import grant, lag


def free_port() -> int:
    """A port whose cluster bus (10,000 above) is a port as well."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_000:
            return port


@pytest.fixture(params=["embedded", "redis-server"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[redis.Redis]:
    binary = None
    if request.param == "redis-server":
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("no redis-server on the PATH")
    settings = {"cluster-enabled": "yes"}
    server = EmbeddedServer(tmp_path, port=free_port(), binary=binary, settings=settings)
    with server, connect(server.url) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        deadline_s = time.monotonic() + 20
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        yield client


def test_what_is_asked_ahead_in_cluster_mode(cluster: redis.Redis) -> None:
    """One question for several partitions crosses slots, and says so; a question for each is answered."""
    topic.create(cluster, topic.Topic("calls", 8000.0, "int16", 1, 8))
    Appender(cluster, "calls", 8).append([Pushed(f"call-{i}", 0, b"xy") for i in range(80)])
    offsets = dict.fromkeys(range(8), b"0-0")
    together, apart = Ahead(cluster, "calls", offsets, 100), Ahead(cluster, "calls", offsets, 100, apart=True)
    assert (together.ready(10), together.take(), together.crosses_slots) == (True, {}, True)
    found = apart.take()
    assert (found, apart.crosses_slots) == (read(cluster, "calls", offsets, 100, 0), False)
    assert sum(map(len, found.values())) == 80


def test_calls_go_apart_in_cluster_mode(cluster: redis.Redis) -> None:
    """The first that go as one are refused, and sent one by one; from then on nobody tries."""
    topic.create(cluster, topic.Topic("calls", 8000.0, "int16", 1, 4))
    for seq in range(3):
        Appender(cluster, "calls", 4).append([Pushed(f"call-{i}", seq, b"xy") for i in range(40)])
        assert cluster.info("errorstats")["errorstat_CROSSSLOT"] == {"count": 1}
    assert sum(backlog(cluster, "calls", 4).values()) == 120


def test_the_whole_path_in_cluster_mode(cluster: redis.Redis) -> None:
    described = topic.create(cluster, topic.Topic("calls", 8000.0, "int16", 1, 4))
    chunks = [Pushed(f"call-{i % 20}", i // 20, b"xy") for i in range(100)]
    Appender(cluster, "calls", 4, max_backlog=1000).append(chunks)
    grants = {p: grant(cluster, Keys("calls", "digits", p)) for p in range(4)}
    read_ = read(cluster, "calls", {p: g.offset for p, g in grants.items()}, 1000, 1000)  # four slots in one read
    found = {p: [(id_, fields_of(flat)) for id_, flat in entries] for p, entries in read_.items()}
    assert sum(map(len, found.values())) == 100
    commits = [
        (
            grants[p].lease,
            Commit(
                b"0-0",
                entries[-1][0],
                len(entries),
                results=[(id_, {b"stream": fields[b"stream"]}) for id_, fields in entries],
                rows=[(stream, b"row", 60_000) for stream in {f[b"stream"].decode() for _, f in entries}],
            ),
        )
        for p, entries in found.items()
    ]
    assert [outcome.check() for outcome in commit_many(cluster, commits)] == [False] * len(commits)
    assert [outcome.check() for outcome in commit_many(cluster, commits)] == [True] * len(commits)
    assert backlog(cluster, "calls", 4) == dict.fromkeys(range(4), 0)
    assert [lag(cluster, g.lease.keys) for g in grants.values()] == [0] * 4
    wanted = {lease.keys: [stream for stream, _, _ in one.rows] for lease, one in commits}
    assert all(row == b"row" for rows in load_rows(cluster, wanted).values() for row in rows)
    reader = ResultReader(cluster, "calls", "digits", 4, "beginning")
    assert len(reader.read(1000, 0)) == 100
    assert reader.read(1000, 20) == []
    assert renew(cluster, [(lease, one.offset_after) for lease, one in commits]) == [None] * 4
    assert release(cluster, [g.lease for g in grants.values()]) == [None] * 4
    assert trim(cluster, "calls", 0, ["digits"], 60_000, 60_000) == (0, 0)
    status = admin.status(cluster, described.name)
    assert sum(p.groups[0].streams for p in status.partitions) == 20
