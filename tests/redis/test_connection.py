"""What a connection promises: nothing is repeated behind our back, and every refusal says what to do."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from pipeline.broker import functions
from pipeline.broker.appender import Appender, AppendFailed, Pushed
from pipeline.broker.asked import Asked, Busy, round_trip
from pipeline.broker.connection import (
    check_server,
    connect,
    connect_async,
    shown,
    translate,
    translated,
)
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys
from pipeline.broker.lease import release, renew
from pipeline.broker.partition import Commit, commit
from pipeline.broker.retention import trim
from pipeline.errors import BrokerUnavailable, ConfigError

from .helpers import everything, grant, ids_of, push
from .proxy import Proxy


@contextmanager
def config(client: redis.Redis, **changes: str) -> Iterator[None]:
    before = {name: client.config_get(name.replace("_", "-")) for name in changes}
    try:
        for name, value in changes.items():
            client.config_set(name.replace("_", "-"), value)
        yield
    finally:
        for found in before.values():
            for name, value in found.items():
                client.config_set(name, value)


def test_a_lost_reply_stores_once(client: redis.Redis, proxy: Proxy) -> None:
    with connect(proxy.url) as through:
        through.ping()
        proxy.lose_reply()
        with pytest.raises(BrokerUnavailable, match="unknown"), translate():
            through.xadd("log", {"a": "b"})
    assert client.xlen("log") == 1


def test_a_unix_socket_holds_a_commit(tmp_path: Path) -> None:
    """Who computes sends it: with a server that is busy elsewhere it would wait."""
    with EmbeddedServer(tmp_path, fsync="no") as own, connect(own.url, 1.0, busy=True) as client:
        assert round_trip(client, [("ECHO", "there")]) == [b"there"]
        assert own.pid is not None
        os.kill(own.pid, signal.SIGSTOP)
        try:
            asked = Asked(client, [("SET", "row", bytes(300_000))])
        finally:
            os.kill(own.pid, signal.SIGCONT)
        assert asked.replies() == [b"OK"]


def test_a_lost_reply_stores_once_asyncio(client: redis.Redis, proxy: Proxy) -> None:
    async def main() -> None:
        through = connect_async(proxy.url)
        await through.ping()
        proxy.lose_reply()
        with pytest.raises(BrokerUnavailable), translate():
            await through.xadd("log", {"a": "b"})
        await through.aclose()

    asyncio.run(main())
    assert client.xlen("log") == 1


@pytest.mark.parametrize("busy", [False, True])
def test_what_was_asked_for_and_is_not_wanted_leaves_no_replies_behind(url: str, busy: bool) -> None:
    with connect(url, busy=busy) as client:
        Asked(client, [("ECHO", "old")]).drop()
        assert round_trip(client, [("ECHO", "new")]) == [b"new"]
        first, second = (Asked(client, [("ECHO", word)]) for word in ("first", "second"))
        assert (second.replies(), first.replies()) == ([b"second"], [b"first"])


@pytest.mark.parametrize("busy", [False, True])
def test_a_round_trip_that_was_interrupted_leaves_no_replies_behind(url: str, busy: bool) -> None:
    """Ctrl-C between sending and reading: the next command would take the reply of another for its own."""
    with connect(url, busy=busy) as client:
        connection = client.connection_pool.get_connection()
        client.connection_pool.release(connection)
        send, armed = connection.send_packed_command, [True]

        def interrupted(*args: Any) -> None:
            send(*args)
            if armed.pop():
                raise KeyboardInterrupt

        connection.send_packed_command = interrupted
        with pytest.raises(KeyboardInterrupt):
            round_trip(client, [("WAIT", 1, 300), ("ECHO", "old")])  # replies that are not there yet
        del connection.send_packed_command
        assert round_trip(client, [("ECHO", "new")]) == [b"new"]


def me(client: redis.Redis) -> Any:
    return round_trip(client, [("CLIENT", "ID")])[0]


def test_who_asks_all_the_time_keeps_the_connection_at_hand(url: str) -> None:
    with connect(url, busy=True) as client, connect(url) as other:
        mine = me(client)
        client.connection_pool.disconnect(inuse_connections=False)  # of those in the pool there is none
        assert me(client) == mine
        other.client_kill_filter(_id=str(mine))
        with pytest.raises(redis.ConnectionError):
            me(client)
        assert me(client) != mine


def test_one_that_broke_is_reason_to_look_at_the_others(url: str) -> None:
    """A server that was away is told once, not once for each connection at hand."""
    with connect(url, busy=True) as client, connect(url) as other:
        three = [Asked(client, [("CLIENT", "ID")]) for _ in range(3)]
        for id_ in [asked.replies()[0] for asked in three]:
            other.client_kill_filter(_id=str(id_))
        with pytest.raises(redis.ConnectionError):
            me(client)
        assert me(client) > 0


def test_a_connection_that_was_at_hand_for_long_is_looked_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any of a pool: the server may have ended it, and what nobody sent yet is sent by another."""
    monkeypatch.setattr(Busy, "_AT_HAND_S", 0.0)
    with connect(url, busy=True) as client, connect(url) as other:
        mine = me(client)
        other.client_kill_filter(_id=str(mine))
        assert me(client) != mine


def test_a_connection_at_hand_is_let_go_of_with_the_others(url: str) -> None:
    """The pool was told that its server is not the one to ask any more."""
    with connect(url, busy=True) as client:
        mine = me(client)
        client.connection_pool.update_active_connections_for_reconnect()
        assert me(client) != mine


def test_a_child_process_does_not_use_the_connection_at_hand(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(url, busy=True) as client:
        mine, pid = me(client), os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        assert me(client) != mine


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost", "redis://localhost:port", "redis://h/0?db=x"])
def test_urls_that_are_none(url: str) -> None:
    for make in (connect, connect_async):
        with pytest.raises(ConfigError, match="Redis URL"):
            make(url)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in shown("rediss://u:secret@h:1/0")
    with pytest.raises(ConfigError) as error:
        connect("http://u:secret@h")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["unix:///nowhere/at/all.sock", "redis://127.0.0.1:1"])
def test_nobody_there(url: str) -> None:
    with connect(url) as client, pytest.raises(BrokerUnavailable, match="no answer") as failed:
        check_server(client)
    assert ".." not in str(failed.value)


def test_the_server_is_named(client: redis.Redis) -> None:
    assert check_server(client).split()[0] in ("Redis", "Valkey")


def test_a_server_that_evicts_is_refused(client: redis.Redis) -> None:
    with (
        config(client, maxmemory="1gb", maxmemory_policy="volatile-lru"),
        pytest.raises(ConfigError, match="noeviction"),
    ):
        check_server(client)


def test_out_of_memory_refuses_writes_and_lets_go_on(client: redis.Redis, keys: Keys) -> None:
    push(client, keys, ids_of(1, 5))
    lease = grant(client, keys).lease
    one = Commit(b"0-0", b"5-0", 5, results=[(b"1-0", {b"a": b"b"})])
    appender = Appender(client, "calls", 1)
    appender.append([Pushed("s", 0, b"")])
    with config(client, maxmemory="1"):
        stored = everything(client)
        with pytest.raises(BrokerUnavailable, match="out of memory"):
            commit(client, lease, one)
        with pytest.raises(AppendFailed) as failed:
            appender.append([Pushed("s", 1, b""), Pushed("s", 2, b"")])
        assert (failed.value.refused, failed.value.unknown) == ([0, 1], [])
        assert everything(client) == stored
        assert renew(client, [(lease, b"0-0")]) == [None]
        assert trim(client, "calls", 3, ["digits"], 0, 0) == (0, 0)
    assert commit(client, lease, one) is False
    with config(client, maxmemory="1"):
        assert trim(client, "calls", 3, ["digits"], 0, 0) == (4, 1)
        assert release(client, [lease]) == [None]


def test_a_replica_refuses_writes(client: redis.Redis, keys: Keys) -> None:
    push(client, keys, ids_of(1, 5))
    lease = grant(client, keys).lease
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(BrokerUnavailable, match="replica"):
            commit(client, lease, Commit(b"0-0", b"5-0", 5))
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")
    assert commit(client, lease, Commit(b"0-0", b"5-0", 5)) is False


def test_too_few_replicas_refuse_writes(client: redis.Redis, keys: Keys) -> None:
    push(client, keys, ids_of(1, 5))
    lease = grant(client, keys).lease
    with config(client, min_replicas_to_write="1"), pytest.raises(BrokerUnavailable, match="NOREPLICAS"):
        commit(client, lease, Commit(b"0-0", b"5-0", 5))


def test_a_wrong_password_and_a_poor_user(client: redis.Redis, url: str, keys: Keys) -> None:
    client.execute_command("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+@all", "-@stream", "-function|load")
    try:
        with connect(url.replace("unix://", "unix://poor:no@")) as wrong, pytest.raises(ConfigError, match="password"):
            check_server(wrong)
        with (
            connect(url.replace("unix://", "unix://poor:pw@")) as poor,
            pytest.raises(ConfigError, match="ACL"),
            translate(),
        ):
            poor.xadd(keys.log, {"a": "b"})
        client.function_flush()
        with (
            connect(url.replace("unix://", "unix://poor:pw@")) as poor,
            pytest.raises(ConfigError, match="`statebelt load-functions` once"),
        ):
            functions.load(poor)
    finally:
        client.acl_deluser("poor")


def test_functions_come_back_when_they_are_lost(client: redis.Redis, keys: Keys) -> None:
    push(client, keys, ids_of(1, 5))
    lease = grant(client, keys).lease
    client.function_flush()
    assert renew(client, [(lease, b"0-0")] * 2) == [None, None]
    functions.load(client)  # again: no harm
    assert [info[b"library_name"].decode() for info in client.function_list()] == [functions.library()]


def test_versions_live_side_by_side(client: redis.Redis, keys: Keys) -> None:
    client.function_flush()
    older = functions.source().replace(functions.library().split("_")[1], "0123456789")
    client.function_load(older)
    grant(client, keys)
    assert len(client.function_list()) == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (redis.exceptions.BusyLoadingError("loading", status_code="LOADING"), BrokerUnavailable),
        (redis.exceptions.ReadOnlyError("You can't write", status_code="READONLY"), BrokerUnavailable),
        (redis.exceptions.MasterDownError("Link down", status_code="MASTERDOWN"), BrokerUnavailable),
        (redis.exceptions.ClusterDownError("down", status_code="CLUSTERDOWN"), BrokerUnavailable),
        (redis.ResponseError("MISCONF Redis is configured to save"), BrokerUnavailable),
        (redis.ResponseError("BUSY Redis is busy running a script"), BrokerUnavailable),
        (redis.TimeoutError("Timeout reading from socket"), BrokerUnavailable),
        (redis.AuthenticationError("WRONGPASS"), ConfigError),
        (redis.exceptions.NoPermissionError("no permissions"), ConfigError),
        (redis.ResponseError("ERR unknown command 'FCALL'"), ConfigError),
        (ValueError("not redis'"), ValueError),
    ],
)
def test_errors_are_named_by_what_to_do(error: Exception, kind: type[Any]) -> None:
    assert type(translated(error)) is kind
