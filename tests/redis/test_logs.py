"""Pushing and reading: what is stored, what is told when something is lost, and that nothing is skipped."""

from __future__ import annotations

import asyncio
import threading

import pytest
import redis

from pipeline.broker.appender import Appender, AppendFailed, AppendFull, AsyncAppender, Pushed, backlog
from pipeline.broker.connection import connect, connect_async
from pipeline.broker.entries import fields_of
from pipeline.broker.keys import Keys, log_key, partition_of
from pipeline.broker.partition import Commit, commit
from pipeline.broker.reader import read
from pipeline.broker.results import AsyncResultReader, Result, ResultReader
from pipeline.errors import BacklogFull, BrokerUnavailable, ChunkRejected, ConfigError

from .helpers import grant, ids_of, push
from .proxy import Proxy

MANY = [Pushed(f"call-{i % 7}", i // 7, bytes([i % 256]) * 5, end=i >= 693) for i in range(700)]


def stored(client: redis.Redis, partitions: int) -> dict[str, list[tuple[int, bytes, bool]]]:
    """What each stream holds, in order."""
    found: dict[str, list[tuple[int, bytes, bool]]] = {}
    for partition in range(partitions):
        for _, fields in client.xrange(log_key("calls", partition)):
            stream = fields[b"stream"].decode()
            assert partition_of(stream, partitions) == partition
            found.setdefault(stream, []).append((int(fields[b"seq"]), fields[b"data"], fields.get(b"end") == b"1"))
    return found


def expected(chunks: list[Pushed]) -> dict[str, list[tuple[int, bytes, bool]]]:
    found: dict[str, list[tuple[int, bytes, bool]]] = {}
    for chunk in chunks:
        found.setdefault(chunk.stream, []).append((chunk.seq, chunk.data, chunk.end))
    return found


def test_append_stores_in_order_and_answers_ids(client: redis.Redis) -> None:
    ids = Appender(client, "calls", 4).append(MANY)
    assert stored(client, 4) == expected(MANY)
    for chunk, id_ in zip(MANY, ids, strict=True):
        [(_, fields)] = client.xrange(log_key("calls", partition_of(chunk.stream, 4)), id_, id_)
        assert int(fields[b"seq"]) == chunk.seq
        assert list(fields) == [b"stream", b"seq", b"data"] + [b"end"] * chunk.end
    assert Appender(client, "calls", 4).append([]) == []


def test_append_asyncio(client: redis.Redis, url: str) -> None:
    async def main() -> list[bytes]:
        through = connect_async(url)
        try:
            client.function_flush()  # loads them, too
            return await AsyncAppender(through, "calls", 4).append(MANY)
        finally:
            await through.aclose()

    assert len(asyncio.run(main())) == 700
    assert stored(client, 4) == expected(MANY)


def test_a_lost_reply_says_what_is_unknown(client: redis.Redis, proxy: Proxy) -> None:
    with connect(proxy.url) as through:
        appender = Appender(through, "calls", 4)
        appender.append(MANY[:7])
        proxy.lose_reply()
        with pytest.raises(AppendFailed, match="2 chunks may not be stored") as failed:
            appender.append(MANY[7:9])
        assert (failed.value.unknown, failed.value.refused, failed.value.ids) == ([0, 1], [], [None, None])
        appender.append([MANY[7:9][i] for i in failed.value.unknown])
    assert stored(client, 4)["call-0"][-2:] == [(1, b"\7" * 5, False)] * 2  # the worker drops one by its seq


def test_a_lost_reply_asyncio(client: redis.Redis, proxy: Proxy) -> None:
    async def main() -> None:
        through = connect_async(proxy.url)
        appender = AsyncAppender(through, "calls", 4)
        await appender.append(MANY[:7])
        proxy.lose_reply()
        with pytest.raises(AppendFailed) as failed:
            await appender.append(MANY[7:9])
        assert failed.value.unknown == [0, 1]
        await through.aclose()

    asyncio.run(main())
    assert client.xlen(log_key("calls", partition_of("call-0", 4))) >= 2


def test_a_bad_stream_sends_nothing(client: redis.Redis) -> None:
    with pytest.raises(ChunkRejected):
        Appender(client, "calls", 4).append([MANY[0], Pushed("{", 0, b"")])
    assert client.keys("*") == []


def test_a_partition_that_refuses_does_not_harm_the_others(client: redis.Redis) -> None:
    full = partition_of("call-0", 4)
    push(client, Keys("calls", "g", full), ids_of(1, 95))
    with pytest.raises(AppendFull, match=f"partition {full} has 95") as refused:
        Appender(client, "calls", 4, max_backlog=100).append(MANY[:98])
    assert isinstance(refused.value, BacklogFull)
    assert refused.value.refused == [i for i, chunk in enumerate(MANY[:98]) if partition_of(chunk.stream, 4) == full]
    assert client.xlen(log_key("calls", full)) == 95  # none of that partition, not some
    assert [i for i, id_ in enumerate(refused.value.ids) if id_ is None] == refused.value.refused
    client.delete(log_key("calls", full))
    kept = [chunk for chunk in MANY[:98] if partition_of(chunk.stream, 4) != full]
    assert stored(client, 4) == expected(kept)


def test_a_foreign_key_is_a_config_error(client: redis.Redis) -> None:
    client.set(log_key("calls", 0), "x")
    with pytest.raises(ConfigError, match="another type"):
        Appender(client, "calls", 1).append(MANY[:2])


def test_backlog_is_the_slowest_groups(client: redis.Redis) -> None:
    assert backlog(client, "calls", 2) == {0: 0, 1: 0}
    slow, fast = Keys("calls", "slow", 0), Keys("calls", "zealous", 0)  # Redis lists them in this order
    push(client, slow, ids_of(1, 10))
    assert backlog(client, "calls", 2) == {0: 10, 1: 0}  # no group: all of it
    commit(client, grant(client, fast).lease, Commit(b"0-0", b"10-0", 10))
    assert backlog(client, "calls", 1) == {0: 0}
    commit(client, grant(client, slow).lease, Commit(b"0-0", b"3-0", 3))
    assert backlog(client, "calls", 1) == {0: 7}
    client.xgroup_setid(slow.log, "slow", "5-0", entries_read=-1)
    assert backlog(client, "calls", 1)[0] in (5, 10)  # exact where the server can, else a bound


def test_what_is_not_there_any_more_holds_back_nobody(client: redis.Redis) -> None:
    """Somebody trimmed by hand what the group had still to read: its lag is more than the log holds."""
    keys = Keys("calls", "digits", 0)
    granted = grant(client, keys)
    push(client, keys, ids_of(1, 10))
    client.xtrim(keys.log, maxlen=2, approximate=False)
    commit(client, granted.lease, Commit(b"0-0", b"9-0", 1))
    client.xgroup_setid(keys.log, "digits", "0-0", entries_read=0)
    push(client, keys, ids_of(11, 13))
    assert client.xlen(keys.log) == 5
    Appender(client, "calls", 1, max_backlog=8).append(MANY[:3])
    with pytest.raises(AppendFull):
        Appender(client, "calls", 1, max_backlog=8).append(MANY[3:4])


def test_reading_chunks_of_several_partitions(client: redis.Redis) -> None:
    Appender(client, "calls", 4).append(MANY)
    offsets = dict.fromkeys(range(4), b"0-0")
    seen: dict[str, list[int]] = {}
    while found := read(client, "calls", offsets, count=50, block_ms=0):
        for partition, entries in found.items():
            assert len(entries) <= 50
            offsets[partition] = entries[-1][0]
            for fields in (fields_of(flat) for _, flat in entries):
                seen.setdefault(fields[b"stream"].decode(), []).append(int(fields[b"seq"]))
    assert seen == {f"call-{i}": list(range(100)) for i in range(7)}
    assert read(client, "calls", {}, 1, 1000) == {}


def test_a_blocking_read_wakes_for_a_push(client: redis.Redis, url: str) -> None:
    found: list[object] = []
    with connect(url) as blocked:
        reader = threading.Thread(target=lambda: found.append(read(blocked, "calls", {0: b"0-0"}, 10, 5000)))
        reader.start()
        while not client.info("clients")["blocked_clients"]:
            pass
        Appender(client, "calls", 1).append(MANY[:1])
        reader.join(5)
    assert list(found[0]) == [0]  # type: ignore[call-overload]


def test_a_read_may_not_outlast_the_socket(url: str) -> None:
    with connect(url, timeout_s=1.0) as client:
        with pytest.raises(ConfigError, match="outlast"):
            read(client, "calls", {0: b"0-0"}, 1, 1000)
        assert read(client, "calls", {0: b"0-0"}, 1, 20) == {}


def results_of(client: redis.Redis, first: int, last: int) -> None:
    for partition in range(2):
        keys = Keys("calls", "digits", partition)
        push(client, keys, ids_of(first, last))
        granted = grant(client, keys)
        entries = [(id_, {b"n": id_}) for id_ in ids_of(first, last)]
        commit(client, granted.lease, Commit(granted.offset, entries[-1][0], len(entries), entries))


def ids(results: list[Result], partition: int) -> list[bytes]:
    return [r.id for r in results if r.partition == partition]


def test_results_from_now_from_the_beginning_and_from_ids(client: redis.Redis) -> None:
    results_of(client, 1, 5)
    now = ResultReader(client, "calls", "digits", 2)
    now.open()
    results_of(client, 6, 8)
    beginning = ResultReader(client, "calls", "digits", 2, "beginning")
    fresh = now.read(block_ms=0)
    assert ids(fresh, 0) == ids(fresh, 1) == ids_of(6, 8)
    assert now.offsets == {0: b"8-0", 1: b"8-0"}
    first = beginning.read(count=3, block_ms=0)
    assert [ids(first, p) for p in (0, 1)] == [ids_of(1, 3)] * 2
    assert first[0].fields == {b"n": b"1-0"}
    later = ResultReader(client, "calls", "digits", 2, beginning.offsets)
    assert ids(later.read(block_ms=0), 1) == ids_of(4, 8)
    assert later.read(block_ms=10) == []


def test_now_on_a_log_that_is_not_there_yet_misses_nothing(client: redis.Redis) -> None:
    reader = ResultReader(client, "calls", "digits", 2)
    assert reader.read(block_ms=0) == []
    results_of(client, 1, 2)
    assert ids(reader.read(block_ms=0), 0) == ids_of(1, 2)


def test_a_lost_reply_skips_no_result(client: redis.Redis, proxy: Proxy) -> None:
    results_of(client, 1, 5)
    with connect(proxy.url) as through:
        reader = ResultReader(through, "calls", "digits", 2, "beginning")
        assert ids(reader.read(count=2, block_ms=0), 0) == ids_of(1, 2)
        proxy.lose_reply()
        with pytest.raises(BrokerUnavailable):
            reader.read(block_ms=0)
        assert ids(reader.read(block_ms=0), 0) == ids_of(3, 5)


def test_results_asyncio(client: redis.Redis, url: str) -> None:
    results_of(client, 1, 5)

    async def main() -> tuple[list[Result], list[Result]]:
        through = connect_async(url)
        now = AsyncResultReader(through, "calls", "digits", 2)
        await now.open()
        everything = await AsyncResultReader(through, "calls", "digits", 2, "beginning").read(block_ms=0)
        waiting = asyncio.create_task(now.read(block_ms=5000))
        while not client.info("clients")["blocked_clients"]:
            await asyncio.sleep(0)
        results_of(client, 6, 6)
        fresh = await waiting
        await through.aclose()
        return everything, fresh

    everything, fresh = asyncio.run(main())
    assert ids(everything, 0) == ids(everything, 1) == ids_of(1, 5)
    assert fresh[0].id == b"6-0"
