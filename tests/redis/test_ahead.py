"""What is asked ahead, over several connections: whatever becomes of one, none keeps what it has still to say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from pipeline.broker.asked import round_trip
from pipeline.broker.connection import connect
from pipeline.broker.keys import log_key
from pipeline.broker.reader import Ahead

from .proxy import Proxy


def test_a_fetch_that_is_not_wanted_any_more_ends(proxy: Proxy, redis_client: redis.Redis) -> None:
    """Its answer is still on its way: who fetches must not wait for it, and nobody takes it for another one."""
    redis_client.xadd(log_key("audio", 0), {"a": "b"})
    with connect(proxy.url, 60, busy=True) as client, ThreadPoolExecutor(1) as fetcher:
        for answered in (False, True):
            if not answered:
                proxy.delay(60, "reply", b"XREAD")
            ahead = Ahead(client, "audio", {0: b"0-0"}, 10, fetcher=fetcher)
            assert ahead.ready(10 if answered else 0.01) is answered
            ahead.drop()
            fetcher.submit(lambda: None).result(20)
            assert round_trip(client, [("ECHO", "new")]) == [b"new"]
        assert list(Ahead(client, "audio", {0: b"0-0"}, 10, fetcher=fetcher).take()) == [0]


@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize("fault", ["lose_reply", "cut_request"])
def test_a_question_that_is_lost_in_part_is_let_go_of_as_a_whole(proxy: Proxy, url: str, fault: str) -> None:
    """No connection is kept that still has something to say, and each is given back."""
    with connect(url) as direct, connect(proxy.url, 2, busy=True) as client:
        offsets = dict.fromkeys(range(4), b"0-0")
        for partition in offsets:
            direct.xadd(log_key("audio", partition), {"a": "b"})
        assert Ahead(client, "audio", offsets, 10).take().keys() == offsets.keys()
        for _ in range(3):
            getattr(proxy, fault)(b"XREAD")
            ahead = Ahead(client, "audio", offsets, 10)
            assert ahead.ready(10)
            assert ahead.take() == {}
            assert [round_trip(client, [("ECHO", str(n))]) for n in range(8)] == [[b"%d" % n] for n in range(8)]
        assert Ahead(client, "audio", offsets, 10).take().keys() == offsets.keys()
        assert proxy.happened[fault] == 3
        at_hand = {id(connection) for connection, _ in client._at_hand}
        assert {id(connection) for connection in client.connection_pool._in_use_connections} == at_hand  # type: ignore[attr-defined]


@pytest.mark.usefixtures("redis_client")
def test_where_no_more_connections_are_to_be_had_one_takes_the_question(url: str) -> None:
    """And leaves room for the commit."""
    with connect(url) as direct, connect(url, 2, busy=True) as client:
        offsets = dict.fromkeys(range(4), b"0-0")
        for partition in offsets:
            direct.xadd(log_key("audio", partition), {"a": "b"})
        most = direct.config_get("maxclients")["maxclients"]
        direct.config_set("maxclients", len(direct.client_list()) + 2)
        try:
            for _ in range(3):
                ahead = Ahead(client, "audio", offsets, 10)
                assert round_trip(client, [("ECHO", "commit")]) == [b"commit"]
                assert ahead.take().keys() == offsets.keys()
        finally:
            direct.config_set("maxclients", most)


@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize(("like_bytes", "expected"), [(0, 4), (1, 1), (70_000, 2), (10**9, 4)])
def test_a_question_takes_as_many_connections_as_its_answer_is_worth(url: str, like_bytes: int, expected: int) -> None:
    with connect(url) as direct, connect(url, busy=True) as client:
        offsets = dict.fromkeys(range(9), b"0-0")
        for partition in offsets:
            direct.xadd(log_key("audio", partition), {"a": "b"})
        assert Ahead(client, "audio", offsets, 10, like_bytes=like_bytes).take().keys() == offsets.keys()
        assert sum(who["cmd"] == "xread" for who in direct.client_list()) == expected


@pytest.mark.usefixtures("redis_client")
def test_a_log_that_cannot_be_read_is_not_hidden_by_the_others(url: str) -> None:
    with connect(url, busy=True) as client:
        for partition in range(3):
            client.xadd(log_key("audio", partition), {"a": "b"})
        client.set(log_key("audio", 3), "no log")
        assert Ahead(client, "audio", dict.fromkeys(range(3), b"0-0"), 10).take().keys() == {0, 1, 2}
        assert Ahead(client, "audio", dict.fromkeys(range(4), b"0-0"), 10).take() == {}
