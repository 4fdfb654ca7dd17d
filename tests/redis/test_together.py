"""Calls on several partitions go as one where they are small: who waits is woken once, and each keeps its own fate."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from pipeline.broker.appender import Appender, Pushed
from pipeline.broker.connection import connect
from pipeline.broker.functions import library
from pipeline.broker.keys import Keys, partition_of
from pipeline.broker.lease import Lease
from pipeline.broker.partition import Commit, commit_many, load_rows
from pipeline.broker.reader import read_raw
from pipeline.errors import BrokerUnavailable, ConfigError
from tests.harness import until

from .helpers import grant, ids_of, lag, push

FOUR = [Keys("calls", "digits", partition) for partition in range(4)]


def commits_of(leases: list[Lease], entries: int = 4, fields: int = 1) -> list[tuple[Lease, Commit]]:
    """What a batch of `entries` chunks did to each partition; each result has so many fields."""
    said = {b"%d" % i: b"v" for i in range(fields)}
    results = [(id_, said) for id_ in ids_of(1, entries)]
    rows = [(f"s{i}", b"row %d" % i, 60_000) for i in range(entries)]
    return [(lease, Commit(b"0-0", b"%d-0" % entries, entries, results, (), rows)) for lease in leases]


def leases_of(client: redis.Redis, entries: int = 4) -> list[Lease]:
    for keys in FOUR:
        push(client, keys, ids_of(1, entries))
    return [grant(client, keys).lease for keys in FOUR]


def woken_by(client: redis.Redis, url: str, logs: list[str], act: Callable[[], object]) -> set[str]:
    """Of which logs a read tells that waited when `act` wrote to all of them."""
    if "valkey_version" not in client.info("server"):
        pytest.skip("Redis 7.0 tells a reader that waited of one log, however many were written to")
    with connect(url) as reading, ThreadPoolExecutor(1) as pool:
        found = pool.submit(read_raw, reading, dict.fromkeys(logs, b"0-0"), 100, 5_000)
        until(lambda: client.info("clients")["blocked_clients"] == 1, "the read to wait")
        act()
        return set(found.result())


def test_who_waits_for_results_is_woken_once(client: redis.Redis, url: str) -> None:
    commits, outs = commits_of(leases_of(client)), [keys.out for keys in FOUR]
    assert woken_by(client, url, outs, lambda: commit_many(client, commits)) == set(outs)


def test_who_waits_for_chunks_is_woken_once(client: redis.Redis, url: str) -> None:
    chunks, logs = [Pushed(f"call-{i}", 0, b"xy") for i in range(40)], [keys.log for keys in FOUR]
    assert woken_by(client, url, logs, lambda: Appender(client, "calls", 4).append(chunks)) == set(logs)


@pytest.mark.parametrize(
    ("entries", "fields"), [(4, 1), (60, 1), (20, 400)], ids=["small", "too many for one call", "long"]
)
def test_all_of_it_is_written(client: redis.Redis, entries: int, fields: int) -> None:
    commits = commits_of(leases_of(client, entries), entries, fields)
    assert [outcome.check() for outcome in commit_many(client, commits)] == [False] * 4
    assert [outcome.check() for outcome in commit_many(client, commits)] == [True] * 4
    for keys, (_, commit) in zip(FOUR, commits, strict=True):
        assert client.xrange(keys.out) == list(commit.results)
        assert load_rows(client, {keys: [s for s, _, _ in commit.rows]})[keys] == [row for _, row, _ in commit.rows]
        assert lag(client, keys) == 0


@pytest.mark.parametrize("key", [FOUR[1].out, FOUR[1].lease])
def test_a_commit_that_ends_in_an_error_is_alone(client: redis.Redis, key: str) -> None:
    """The server refuses in the midst of it; those before and behind it are stored."""
    commits = commits_of(leases_of(client))
    client.delete(key)
    client.sadd(key, "another program's")
    errors = [outcome.error for outcome in commit_many(client, commits)]
    assert [type(error) for error in errors] == [type(None), ConfigError, type(None), type(None)]
    assert "a key of ours holds another type" in str(errors[1])
    assert [client.exists(keys.row("s0")) for keys in FOUR] == [1, 0, 1, 1]
    assert [lag(client, keys) for keys in FOUR] == [0, 4, 0, 0]


@pytest.mark.parametrize(
    "args",
    [[], ["x"], ["1"], ["1", "1", "1e15", "x"], ["1", "1", "1000000000000000", "x"], ["2", "1", "1", "1", "1", "x"]],
)
def test_numbers_that_do_not_fit_are_refused(client: redis.Redis, args: list[str]) -> None:
    """Before anything is done: a loop of that length would be the server's last for everybody."""
    Appender(client, "calls", 1).append([Pushed("s", 0, b"xy")])
    version = library().rsplit("_", 1)[1]
    with pytest.raises(redis.ResponseError, match=r"not a number of keys|do not fit"):
        client.execute_command("FCALL", f"sb_append_many_{version}", 1, FOUR[0].log, *args)


def test_where_memory_is_short_some_of_it_is_written(client: redis.Redis) -> None:
    """All that a call brings counts before it is run: as one they would be refused for ever."""
    rows = [("s", bytes(6 << 20), 60_000)]
    commits = [(lease, commit._replace(rows=rows)) for lease, commit in commits_of(leases_of(client))]
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory", used + (20 << 20))
    try:
        errors = [outcome.error for outcome in commit_many(client, commits)]
    finally:
        client.config_set("maxmemory", 0)
    assert errors[0] is None
    assert isinstance(errors[-1], BrokerUnavailable)


def test_a_push_that_ends_in_an_error_is_alone(client: redis.Redis) -> None:
    chunks = [Pushed(f"call-{i}", 0, b"xy") for i in range(40)]
    client.set(FOUR[1].log, "another program's")
    with pytest.raises(ConfigError, match="WRONGTYPE"):
        Appender(client, "calls", 4).append(chunks)
    stored = [sum(partition_of(chunk.stream, 4) == p for chunk in chunks) for p in range(4)]
    assert [client.xlen(FOUR[p].log) for p in (0, 2, 3)] == [stored[p] for p in (0, 2, 3)]
