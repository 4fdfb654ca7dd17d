"""Dead letters: looked through in short, pushed again with what they were, and removed, all by any number."""

from __future__ import annotations

import pytest
import redis

from pipeline.broker import dead
from pipeline.broker.dead import Brief
from pipeline.broker.keys import Keys
from pipeline.broker.partition import MAX_DEAD_BYTES, bounded
from pipeline.errors import BrokerUnavailable, ConfigError

from .helpers import everything
from .test_connection import config

KEYS = Keys("calls", "digits", 1)
CHUNK = {b"stream": b"s", b"seq": b"7", b"data": b"\x00\x01\xff\n", b"end": b"1"}


def put(client: redis.Redis, id_: bytes, fields: dict[bytes, bytes], reason: bytes = b"bad_seq") -> None:
    """A dead letter as a worker writes it."""
    client.xadd(KEYS.dead, bounded({b"reason": reason, b"message": b"no good", **fields}), id=id_)  # type: ignore[arg-type]


def brief(id_: bytes, partition: int = 1, data_bytes: int = 4) -> Brief:
    return Brief(partition, id_, b"bad_seq", b"s", b"7", data_bytes, False)


def listed(client: redis.Redis, **chosen: object) -> list[Brief]:
    pages = dead.briefs(client, "calls", "digits", range(3), **chosen)  # type: ignore[arg-type]
    return [each for page in pages for each in page]


class TestLists:
    def test_what_a_letter_is_in_short(self, client: redis.Redis) -> None:
        assert listed(client) == []
        put(client, b"5-0", CHUNK)
        put(client, b"6-1", {b"stream": b"\x1b[31m" * 100, b"seq": b"9" * 100, b"data": b"x" * 5000}, b"oversize")
        put(client, b"7-0", {b"entry.colour": b"red"}, b"unknown_field")
        put(client, b"8-0", {b"data": b"x" * (MAX_DEAD_BYTES + 1)}, b"oversize")
        first, second, third, fourth = listed(client)
        assert first == brief(b"5-0")
        assert (second.stream, second.seq, second.data_bytes) == (b"\x1b[31m" * 40, b"9" * 40, 5000)
        assert third == Brief(1, b"7-0", b"unknown_field", b"", b"", 0, False)
        assert fourth.cut
        assert [b.id for b in listed(client, reason="oversize")] == [b"6-1", b"8-0"]
        assert [b.id for b in listed(client, stream=b"s")] == [b"5-0"]
        assert listed(client, stream=b"s", reason="oversize") == []

    def test_a_hundred_thousand_of_them(self, client: redis.Redis) -> None:
        with client.pipeline(transaction=False) as pipe:
            for i in range(100_000):
                pipe.xadd(KEYS.dead, {"reason": "bad_end" if i % 1000 else "rare", "data": b"x" * 20}, id=f"1-{i}")
            pipe.execute()
        pages = list(dead.briefs(client, "calls", "digits", [1]))
        assert max(map(len, pages)) <= dead.PAGE
        assert [b.id for page in pages for b in page] == [b"1-%d" % i for i in range(100_000)]
        assert [b.id for b in listed(client, reason="rare")] == [b"1-%d" % i for i in range(0, 100_000, 1000)]

    def test_large_letters_are_looked_at_few_at_a_time(self, client: redis.Redis) -> None:
        for i in range(40):
            put(client, b"1-%d" % i, {b"data": b"x" * (1 << 20)})
        pages = list(dead.briefs(client, "calls", "digits", [1]))
        assert [b.id for page in pages for b in page] == [b"1-%d" % i for i in range(40)]
        assert max(map(len, pages)) <= 17

    def test_letters_that_come_meanwhile_are_not_waited_for(self, client: redis.Redis) -> None:
        """A chunk that is retried may die at once again: a loop over all must end all the same."""
        put(client, b"1-0", CHUNK)
        seen = 0
        for page in dead.briefs(client, "calls", "digits", [1]):
            seen += len(page)
            put(client, b"%d-0" % (seen + 1), CHUNK)
        assert seen == 1

    @pytest.mark.parametrize("id_", [b"0-1", b"18446744073709551615-18446744073709551615"])
    def test_ids_at_the_ends(self, client: redis.Redis, id_: bytes) -> None:
        put(client, id_, CHUNK)
        assert [b.id for b in listed(client)] == [id_]

    def test_a_key_that_is_no_log(self, client: redis.Redis) -> None:
        client.set(KEYS.dead, "x")
        with pytest.raises(ConfigError, match="another type"):
            listed(client)


def test_one_letter_whole(client: redis.Redis) -> None:
    put(client, b"5-0", CHUNK)
    found = dead.letter(client, "calls", "digits", 1, b"5-0")
    assert found is not None
    assert found.fields == {b"reason": b"bad_seq", b"message": b"no good", **CHUNK}
    assert dead.letter(client, "calls", "digits", 1, b"6-0") is None
    assert dead.letter(client, "calls", "digits", 0, b"5-0") is None


class TestRetry:
    def test_the_chunk_goes_back_as_it_was_and_the_letter_goes(self, client: redis.Redis) -> None:
        put(client, b"5-0", CHUNK)
        (done,) = dead.retry(client, "calls", "digits", [brief(b"5-0")])
        assert done.why == ""
        assert client.xrange(KEYS.log) == [(done.new_id, CHUNK)]
        assert client.xlen(KEYS.dead) == 0
        (again,) = dead.retry(client, "calls", "digits", [brief(b"5-0")])
        assert again.new_id is None
        assert "it is not there" in again.why
        assert client.xlen(KEYS.log) == 1

    def test_foreign_fields_have_their_names_again(self, client: redis.Redis) -> None:
        pushed = {b"stream": b"s", b"reason": b"why", b"message": b"hi", b"cut": b"c", b"entry.x": b"y", b"\xff": b""}
        known = (b"stream",)
        fields = {name if name in known else b"entry." + name: value for name, value in pushed.items()}
        put(client, b"5-0", fields)
        dead.retry(client, "calls", "digits", [brief(b"5-0")])
        ((_, found),) = client.xrange(KEYS.log)
        assert found == pushed

    def test_a_letter_that_was_cut_stays(self, client: redis.Redis) -> None:
        put(client, b"5-0", {b"data": b"x" * (MAX_DEAD_BYTES + 1)})
        put(client, b"6-0", {})
        before = everything(client)
        cut, empty = dead.retry(client, "calls", "digits", [brief(b"5-0"), brief(b"6-0")])
        assert "too large to be kept whole" in cut.why
        assert (cut.new_id, empty.new_id) == (None, None)
        assert everything(client) == before

    def test_in_the_order_in_which_they_were_pushed(self, client: redis.Redis) -> None:
        ids = [b"9-9", b"9-10", b"10-0", *(b"11-%d" % i for i in range(300))]
        for i, id_ in enumerate(ids):
            put(client, id_, {**CHUNK, b"seq": b"%d" % i})
        done = dead.retry(client, "calls", "digits", [brief(id_) for id_ in reversed(ids)])
        assert [each.id for each in done] == ids
        found = client.xrange(KEYS.log)
        assert [fields[b"seq"] for _, fields in found] == [b"%d" % i for i in range(len(ids))]
        assert [id_ for id_, _ in found] == [each.new_id for each in done]

    def test_of_several_partitions(self, client: redis.Redis) -> None:
        put(client, b"5-0", CHUNK)
        client.xadd(Keys("calls", "digits", 0).dead, {"reason": "r", "seq": "8"}, id="6-0")
        done = dead.retry(client, "calls", "digits", [brief(b"5-0"), brief(b"6-0", partition=0)])
        assert [each.id for each in done] == [b"6-0", b"5-0"]
        assert client.xlen(KEYS.log) == client.xlen(Keys("calls", "digits", 0).log) == 1

    def test_a_log_that_takes_no_more(self, client: redis.Redis) -> None:
        put(client, b"5-0", CHUNK)
        client.xadd(KEYS.log, {"a": "b"}, id="18446744073709551615-18446744073709551615")
        before = everything(client)
        with pytest.raises(ConfigError, match="exhausted"):
            dead.retry(client, "calls", "digits", [brief(b"5-0")])
        assert everything(client) == before

    def test_a_full_server(self, client: redis.Redis) -> None:
        put(client, b"5-0", CHUNK)
        before = everything(client)
        with config(client, maxmemory="1"), pytest.raises(BrokerUnavailable, match="out of memory"):
            dead.retry(client, "calls", "digits", [brief(b"5-0")])
        assert everything(client) == before
