"""A commit travels while the next batch is computed: whatever becomes of it, every byte is the whole signal's."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import redis

from pipeline import intake, ownership
from pipeline.batcher import Batcher
from pipeline.broker import partition as partitions
from pipeline.broker.asked import AskedApart
from pipeline.broker.keys import Keys
from pipeline.broker.partition import Sending
from pipeline.broker.reader import Ahead
from pipeline.bundle import Bundle
from pipeline.committing import Committer
from pipeline.consumer import Consumer
from pipeline.errors import BrokerUnavailable
from pipeline.worker import Worker
from tests import zoo
from tests.harness import assert_exact, collect, cut_up, lively, make_producer, random_cut, until, worker

from .proxy import Proxy

BACKLOG: dict[str, object] = {"publish": "chunks", "max_batch": 2, "read_entries": 16}
"""A few chunks are a backlog already."""


def pushed(url: str, bundle: Bundle, streams: int) -> dict[str, np.ndarray]:
    signals = lively(bundle, streams)
    with make_producer(url, bundle) as producer:
        for batch in cut_up(bundle, signals, random_cut):
            producer.push_many(batch)
    return signals


@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize("belt_rows", [64, 48], ids=["room", "barely any room"])
@pytest.mark.parametrize("row_every_chunks", [1, 5])
def test_commits_travel_where_there_is_a_backlog(url: str, belt_rows: int, row_every_chunks: int) -> None:
    """More streams than the belt holds: a row is forgotten only once it is stored, and what is on its way is not."""
    bundle = zoo.bundle("sensor")
    signals = pushed(url, bundle, 100)
    settings = {**BACKLOG, "belt_rows": belt_rows, "row_every_chunks": row_every_chunks}
    with (
        worker(url, bundle, **settings) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
        assert running.counts["dropped_partitions"] == 0
    assert_exact(bundle, signals, found)
    if row_every_chunks == 1:  # else rows that are held may take the room
        assert running.counts["overlapped"] > 10


@pytest.mark.usefixtures("redis_client")
def test_no_commit_travels_where_the_belt_has_no_room(url: str) -> None:
    bundle = zoo.bundle("sensor")
    signals = pushed(url, bundle, 60)
    with (
        worker(url, bundle, **BACKLOG, belt_rows=47) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    assert running.counts["overlapped"] == 0


@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize("max_batch", [2, 128], ids=["large batches", "small batches"])
def test_the_next_chunks_are_asked_for_meanwhile(url: str, monkeypatch: pytest.MonkeyPatch, max_batch: int) -> None:
    """Of a backlog only the first chunks are waited for. What follows a small batch is asked beside its commit."""
    bundle = zoo.bundle("sensor")
    signals = pushed(url, bundle, 40)
    reads, batches, read, run = 0, 0, intake.read, Batcher.run_joined

    def counted_read(*args: Any, **options: Any) -> Any:
        nonlocal reads
        found = read(*args, **options)
        reads += bool(found)
        return found

    def counted_run(*args: Any, **options: Any) -> Any:
        nonlocal batches
        batches += 1
        return run(*args, **options)

    monkeypatch.setattr(intake, "read", counted_read)
    monkeypatch.setattr(Batcher, "run_joined", counted_run)
    settings = {**BACKLOG, "max_batch": max_batch}
    with (
        worker(url, bundle, **settings) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    assert batches > 10
    assert reads <= 1
    assert running.counts["overlapped"] > 10


@pytest.mark.usefixtures("redis_client")
def test_where_nothing_more_comes_only_commits_ask(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each push waits for the results of the one before: a question of its own would find nothing. (But where a push
    comes between a commit and the question that it took along, there is more.)"""
    bundle = zoo.bundle("sensor")
    signals = lively(bundle, 8)
    made, make = 0, Ahead.__init__

    def asks(*args: Any, **options: Any) -> None:
        nonlocal made
        made += 1
        make(*args, **options)

    monkeypatch.setattr(Ahead, "__init__", asks)
    batches = list(cut_up(bundle, signals, random_cut))
    with (
        make_producer(url, bundle) as producer,
        worker(url, bundle, **{**BACKLOG, "read_entries": 64}),
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        pushed_, told = 0, 0
        for batch in batches:
            producer.push_many(batch)
            pushed_ += len(batch)
            while told < pushed_:
                told += len(consumer.read(timeout_s=10))
    assert len(batches) > 10
    assert made < len(batches) / 2


@pytest.mark.usefixtures("redis_client")
def test_what_follows_a_full_batch_is_fetched_while_it_runs(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches begin only when all is fetched: who fetches afterwards, or in the same thread, waits in vain."""
    bundle = zoo.bundle("sensor")
    signals = pushed(url, bundle, 40)
    begun, done, meanwhile = 0, 0, 0
    fetch, make, run = AskedApart.replies, Ahead.__init__, Batcher.run_joined

    def begins(*args: Any, **options: Any) -> None:
        nonlocal begun
        begun += options.get("fetcher") is not None
        make(*args, **options)

    def fetched(asked: AskedApart) -> Any:
        nonlocal done
        found = fetch(asked)
        done += threading.current_thread().name.startswith("read")
        return found

    def runs(*args: Any, **options: Any) -> Any:
        nonlocal meanwhile
        before = done
        until(lambda: done == begun, "what follows")
        meanwhile += done > before
        return run(*args, **options)

    monkeypatch.setattr(Ahead, "__init__", begins)
    monkeypatch.setattr(AskedApart, "replies", fetched)
    monkeypatch.setattr(Batcher, "run_joined", runs)
    with (
        worker(url, bundle, **BACKLOG),
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    assert meanwhile > 5


@pytest.mark.parametrize("fault", ["lose_reply", "cut_reply", "cut_request"])
@pytest.mark.parametrize(
    ("asks", "within", "settings"),
    [
        ("Ahead", b"XREAD", {"max_batch": 2}),
        ("Ahead", b"XREAD", {"max_batch": 128}),
        ("Reading", b"sb_commit", {"max_batch": 128, "belt_rows": 47}),  # no room for a commit that travels
    ],
    ids=["before the commit", "beside the commit", "with the commit"],
)
def test_questions_that_are_lost(
    url: str,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    asks: str,
    within: bytes,
    settings: dict[str, object],
    fault: str,
) -> None:
    """The commit is sent all the same, or again, and what was asked for is read again once it is stored. Of a question
    that is spread over connections, one is lost at a time."""
    bundle = zoo.bundle("sensor")
    signals = pushed(url, bundle, 40)
    asked, plain = 0, getattr(intake, asks)

    def struck(*args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked % 4 == 1:
            getattr(proxy, fault)(within)
        return plain(*args, **options)

    monkeypatch.setattr(intake, asks, struck)
    with (
        worker(proxy.url, bundle, **{**BACKLOG, **settings}) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
        assert running.counts["dropped_partitions"] == running.counts["duplicates"] == 0
    assert_exact(bundle, signals, found)
    assert proxy.happened[fault] > 2


@pytest.mark.parametrize("late_s", [0.4, 2.5], ids=["late", "never in time"])
def test_an_answer_that_is_late_holds_up_no_commit(
    url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, late_s: float
) -> None:
    """The batch that is computed is committed before its lease ends, and the leases are renewed meanwhile."""
    bundle = zoo.bundle("sensor")
    signals = pushed(url, bundle, 40)
    struck = 0

    class Late(Ahead):
        def __init__(self, *args: Any, **options: Any) -> None:
            nonlocal struck
            if struck < 2:
                struck += 1
                proxy.delay(late_s, "reply", b"XREAD")
            super().__init__(*args, **options)

    monkeypatch.setattr(intake, "Ahead", Late)
    with (
        worker(proxy.url, bundle, **BACKLOG, lease_ms=1000) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
        assert running.counts["dropped_partitions"] == running.counts["duplicates"] == 0
    assert_exact(bundle, signals, found)
    assert proxy.happened["delay_reply"] == 2


@pytest.mark.parametrize("fault", ["lose_reply", "cut_reply", "cut_request"])
def test_commits_that_are_lost_on_their_way(
    url: str, proxy: Proxy, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored or not, the batch that was computed meanwhile goes on behind it; nothing is run twice."""
    bundle = zoo.bundle("sensor")
    signals = pushed(url, bundle, 40)
    plain, sent, hit = Committer.begin, 0, 0

    def struck(*args: Any) -> None:
        nonlocal sent, hit
        sent += 1
        if sent % 4 == 1:
            hit += 1
            getattr(proxy, fault)(b"sb_commit")
        plain(*args)

    monkeypatch.setattr(Committer, "begin", struck)
    with (
        worker(proxy.url, bundle, **BACKLOG) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
        assert running.counts["dropped_partitions"] == 0
    assert_exact(bundle, signals, found)
    assert proxy.happened[fault] == hit > 2


@pytest.mark.parametrize("at_once", [False, True], ids=["later", "at once"])
def test_a_partition_that_is_lost_while_its_commit_travels(
    url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Its lease goes to another between the sending and the reply: what was computed on top of it is dropped with it,
    the other partitions go on, and the next owner finds all as the last commit left it. That may be the same worker in
    the same turn, with chunks in hand that follow the commit that was refused."""
    bundle = zoo.bundle("sensor")
    signals = pushed(url, bundle, 40)
    lease, taken, robbed = Keys("audio", "digits", 1).lease, 0, False
    begin, outcomes = Committer.begin, Sending.outcomes

    def robs(*args: Any) -> None:
        nonlocal taken, robbed
        if taken < 3 and b"thief" not in (redis_client.get(lease) or b"thief"):
            taken, robbed = taken + 1, True
            redis_client.set(lease, b"1000000 thief", px=None if at_once else 50)
        begin(*args)

    def gives_back(sending: Sending) -> Any:
        nonlocal robbed
        found = outcomes(sending)
        if robbed and at_once:
            redis_client.delete(lease)
        robbed = False
        return found

    monkeypatch.setattr(Committer, "begin", robs)
    monkeypatch.setattr(Sending, "outcomes", gives_back)
    if at_once:
        monkeypatch.setattr(ownership, "_BEAT_S", 0.0)
    with (
        worker(url, bundle, **BACKLOG, lease_ms=400) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    assert running.counts["dropped_partitions"] == taken == 3


def test_who_loses_all_keeps_nothing_that_was_read(
    url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another has all partitions: what was asked for of them is let go of, be it answered or not."""
    bundle = zoo.bundle("sensor")
    pushed(url, bundle, 40)
    begin, sent = Committer.begin, 0

    def robs(*args: Any) -> None:
        nonlocal sent
        sent += 1
        for partition in range(4) if sent == 3 else ():
            redis_client.set(Keys("audio", "digits", partition).lease, b"1000000 thief")
        begin(*args)

    monkeypatch.setattr(Committer, "begin", robs)
    with worker(url, bundle, **BACKLOG, lease_ms=400) as running:
        until(lambda: sent >= 3 and not running.owned, "the robbery to be found out")
        until(lambda: running._intake.in_hand == 0 and running._intake._ahead is None, "all to be let go of")


def test_a_lease_that_runs_out_while_a_commit_travels(
    url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit was stored, but before its reply is heard, Redis is away for longer than the lease lasts."""
    bundle = zoo.bundle("sensor")
    signals = pushed(url, bundle, 60)
    flying: dict[str, bytes] = {}
    away, load, begin, settle = False, partitions.load_rows, Committer.begin, Committer.settle

    def begins(committer: Committer, ownership_: Any, effects: Any) -> None:
        begin(committer, ownership_, effects)
        flying.update((owned.lease.keys.log, made.offset) for owned, made in effects)

    def settles(*args: Any) -> None:
        settle(*args)
        flying.clear()

    def stored() -> bool:
        return all(redis_client.xinfo_groups(log)[0]["last-delivered-id"] == flying[log] for log in flying)

    def gone(*args: Any, **options: Any) -> Any:
        nonlocal away
        if flying and not away:
            until(stored, "the commit")
            over_s = time.monotonic() + 0.5
            until(lambda: time.monotonic() > over_s, "more than a lease")
            away = True
            raise BrokerUnavailable("away")
        return load(*args, **options)

    monkeypatch.setattr(Committer, "begin", begins)
    monkeypatch.setattr(Committer, "settle", settles)
    monkeypatch.setattr(partitions, "load_rows", gone)
    with (
        worker(url, bundle, **BACKLOG, lease_ms=400, belt_rows=48) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    assert running.counts["dropped_partitions"] == 4


def test_a_worker_that_stops_settles_what_is_on_its_way(url: str, redis_client: redis.Redis) -> None:
    """Its leases are given back only then: the next worker takes over at once, and nothing is run twice."""
    bundle = zoo.bundle("sensor")
    signals = pushed(url, bundle, 40)

    def flying(running: Worker) -> None:
        until(lambda: running.counts["overlapped"] > 3, "commits on their way")

    for _ in range(3):
        with worker(url, bundle, **BACKLOG) as running:
            flying(running)
        assert not redis_client.exists(*[Keys("audio", "digits", p).lease for p in range(4)])
    with (
        worker(url, bundle, **BACKLOG) as running,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):
        found = collect(consumer, list(signals))
    assert_exact(bundle, signals, found)
    assert running.counts["duplicates"] == 0
