"""Names: what a key may be made of, and which partition a stream belongs to."""

from __future__ import annotations

import zlib

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from pipeline.broker.keys import MAX_NAME_BYTES, Keys, check_name, check_stream, log_key, meta_key, partition_of
from pipeline.errors import ChunkRejected, ConfigError


def test_the_names_of_the_design() -> None:
    keys = Keys("calls", "digits", 3)
    assert (keys.log, keys.out, keys.lease) == (
        "sb:{calls/3}:in",
        "sb:{calls/3}:digits:out",
        "sb:{calls/3}:digits:lease",
    )
    assert (keys.epoch, keys.dead) == ("sb:{calls/3}:digits:epoch", "sb:{calls/3}:digits:dead")
    assert keys.row("a:b") == "sb:{calls/3}:digits:row:a:b"
    assert (log_key("calls", 3), meta_key("calls")) == (keys.log, "sb:calls:meta")


@pytest.mark.parametrize("bad", ["", "a{b", "a}", "a:b", "a\nb", "\x00", "x" * 201, "é" * 101, "\ud800", "\u2028"])
def test_bad_topics_and_groups_are_refused(bad: str) -> None:
    for kind in ("topic", "group"):
        with pytest.raises(ConfigError, match=kind):
            check_name(kind, bad)
    with pytest.raises(ConfigError):
        Keys(bad, "g", 0)
    with pytest.raises(ConfigError):
        Keys("t", bad, 0)


def test_a_slash_divides_a_topic_from_its_partitions() -> None:
    """Else the topic `calls/3` would have keys that a user with rights to the topic `calls` may touch."""
    with pytest.raises(ConfigError, match=r"contains '/'.*slashes"):
        check_name("topic", "calls/3")
    assert check_name("group", "digits/2") == "digits/2"


@pytest.mark.parametrize("bad", ["", "a{b", "a}", "a\nb", "x" * (MAX_NAME_BYTES + 1)])
def test_bad_streams_are_rejected(bad: str) -> None:
    with pytest.raises(ChunkRejected, match="stream name") as rejected:
        check_stream(bad)
    assert rejected.value.reason == "bad_stream"


def test_a_hostile_name_costs_nothing() -> None:
    """Its length is looked at before its characters: a worker that reads 500 MB of them would lose its lease."""
    with pytest.raises(ChunkRejected, match="has 1000001 characters"):
        check_stream("x" * 1_000_000 + "{")


@pytest.mark.parametrize("good", ["a", "rtp://10.0.0.1:5004", "a b", "通話", "x" * 200])
def test_good_streams(good: str) -> None:
    assert check_stream(good) == good


@pytest.mark.parametrize("around", ["{}", "a{}", "{}b", "通{}"], ids=["alone", "last", "first", "among others"])
def test_every_character_is_judged_alike(around: str) -> None:
    """Names of plain ASCII take a shortcut: it must not let anything else in, nor keep anything out."""
    for character in map(chr, range(0x250)):
        name = around.replace("{}", character)
        if character.isprintable() and character not in "{}":
            assert check_stream(name) == name
        else:
            with pytest.raises(ChunkRejected):
                check_stream(name)


@pytest.mark.parametrize("partition", [-1, 16_384])
def test_partitions_have_bounds(partition: int) -> None:
    with pytest.raises(ConfigError, match="partition"):
        Keys("t", "g", partition)


@given(st.text(min_size=1).filter(lambda s: s.isprintable()), st.integers(1, 1000))
def test_the_partition_is_crc32_modulo(stream: str, partitions: int) -> None:
    assert partition_of(stream, partitions) == (zlib.crc32(stream.encode("utf-8")) & 0xFFFFFFFF) % partitions


def test_keys_of_a_partition_share_a_slot(redis_client: redis.Redis) -> None:
    # HASH_SLOT of the tag alone, by CRC-16 as in the cluster's specification
    def crc16(data: bytes) -> int:
        crc = 0
        for byte in data:
            crc ^= byte << 8
            for _ in range(8):
                crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
        return crc

    keys = Keys("calls", "digits", 3)
    assert redis_client.ping()
    every = (keys.log, keys.out, keys.dead, keys.lease, keys.epoch, keys.row("s:{".replace("{", "")))
    tags = {name[name.index("{") + 1 : name.index("}")] for name in every}
    assert {crc16(tag.encode()) % 16_384 for tag in tags} == {crc16(b"calls/3") % 16_384}
