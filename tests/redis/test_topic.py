"""A topic is described once, and everybody agrees or is told how they differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis

from pipeline.broker import topic
from pipeline.broker.keys import meta_key
from pipeline.broker.topic import Topic
from pipeline.errors import ConfigError

CALLS = Topic("calls", 8000.0, "int16", 1, 4)


def test_the_first_creates_and_the_next_agree(client: redis.Redis) -> None:
    assert topic.describe(client, "calls") is None
    assert topic.create(client, CALLS) == CALLS
    assert topic.create(client, CALLS) == CALLS
    assert topic.describe(client, "calls") == CALLS
    stored = client.hgetall(meta_key("calls"))
    assert stored[b"sample_rate_hz"] == b"8000"  # readable in redis-cli
    assert (stored[b"version"], stored[b"partitions"]) == (b"1", b"4")


@pytest.mark.parametrize(
    "change", [{"sample_rate_hz": 16000.0}, {"sample_type": "float32"}, {"channels": 2}, {"partitions": 8}]
)
def test_a_mismatch_names_both_sides(client: redis.Redis, change: dict[str, Any]) -> None:
    topic.create(client, CALLS)
    [(name, value)] = change.items()
    with pytest.raises(ConfigError) as error:
        topic.create(client, replace(CALLS, **change))
    assert f"{name} is {getattr(CALLS, name)!r} there and {value!r} here" in str(error.value)
    assert topic.describe(client, "calls") == CALLS


def test_a_rate_keeps_every_bit(client: redis.Redis) -> None:
    odd = Topic("sensors", 1000 / 3, "float32", 12, 1)
    topic.create(client, odd)
    assert topic.describe(client, "sensors") == odd


@pytest.mark.parametrize("change", [{"partitions": 0}, {"channels": 0}, {"sample_rate_hz": 0.0}, {"name": "a:b"}])
def test_descriptions_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(CALLS, **change)


@pytest.mark.parametrize(
    "stored", [{"version": "2"}, {"version": "1"}, {"version": "1", "partitions": "x"}, {"a": "\xff"}]
)
def test_a_foreign_description_is_refused(client: redis.Redis, stored: dict[str, str]) -> None:
    client.hset(meta_key("calls"), mapping=stored)
    with pytest.raises(ConfigError):
        topic.create(client, CALLS)


def test_a_key_of_another_type(client: redis.Redis) -> None:
    client.set(meta_key("calls"), "x")
    with pytest.raises(ConfigError, match="another type"):
        topic.create(client, CALLS)
