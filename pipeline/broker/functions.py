"""Loading and calling the functions of `statebelt.lua`.

Functions live in the server's data: they survive its restarts and reach its replicas, unlike the EVALSHA cache. Their
names end in a hash of the source, so that a worker never runs another version's code, and two versions live side by
side during an upgrade. They are loaded when a call finds them missing, never replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import redis
import redis.asyncio

from pipeline.broker.asked import round_trip
from pipeline.broker.connection import translate, translated
from pipeline.broker.resp import Command, Value, Word
from pipeline.errors import ConfigError


class Call(NamedTuple):
    """One function call: `name` as in statebelt.lua (`sb_commit`), its keys and its arguments."""

    name: str
    keys: Sequence[str]
    args: Sequence[Word]


@cache
def source() -> str:
    """The library as the server gets it, its name and version put before the text."""
    text = files("pipeline.broker").joinpath("statebelt.lua").read_text(encoding="utf-8")
    version = hashlib.sha256(text.encode()).hexdigest()[:10]
    return f"#!lua name=statebelt_{version}\nlocal VERSION = '{version}'\n{text}"


@cache
def library() -> str:
    """The versioned name of the library."""
    return source().split("\n", 1)[0].split("=", 1)[1]


def _command(call: Call) -> tuple[Word, ...]:
    version = library().rsplit("_", 1)[1]
    return ("FCALL", f"{call.name}_{version}", len(call.keys), *call.keys, *call.args)


def _missing(reply: Any) -> bool:
    return isinstance(reply, redis.ResponseError) and "Function not found" in str(reply)


def _settle(reply: Any) -> Any:
    return translated(reply) if isinstance(reply, Exception) else reply


def load(client: redis.Redis) -> bool:
    """Load the library unless this version of it is there. Returns whether it was not.

    Raises:
        BrokerUnavailable: no answer.
        ConfigError: this user may not load functions: let an administrator do it once (see README.md).
    """
    with translate():
        try:
            client.function_load(source())
        except redis.ResponseError as error:
            _check_loaded(error)
            return False
    return True


def _check_loaded(error: redis.ResponseError) -> None:
    if isinstance(error, redis.exceptions.NoPermissionError):
        raise ConfigError(
            f"the functions {library()} are not loaded, and this user may not load them ({error}). "
            f"Let one who may (+function|load) run `statebelt load-functions` once."
        ) from error
    if "already exists" not in str(error):  # another worker was quicker: fine
        raise error


def call_many(client: redis.Redis, calls: Sequence[Call], then: Sequence[Command] = ()) -> list[Any]:
    """Run calls in one round trip. Each reply is a value, or the (translated) exception of that call alone.

    `then` are more commands, run after them on their connection; their replies are the last.

    Raises:
        BrokerUnavailable: the connection broke: which of the calls took effect is unknown.
    """
    with translate():
        replies = _round_trip(client, calls, then)
        again = [i for i, reply in enumerate(replies) if _missing(reply)]
        if again:  # a function that was not found did not run: to call it again is safe
            load(client)
            again += range(len(calls), len(calls) + len(then))
            repeated = _round_trip(client, [calls[i] for i in again if i < len(calls)], then)
            for i, reply in zip(again, repeated, strict=True):
                replies[i] = reply
    return [_settle(reply) for reply in replies]


def _round_trip(client: redis.Redis, calls: Sequence[Call], then: Sequence[Command]) -> list[Any]:
    return round_trip(client, [*map(_command, calls), *then])


def call(client: redis.Redis, name: str, keys: Sequence[str], args: Sequence[Value] = ()) -> Any:
    """Run one function and return its reply.

    Raises:
        BrokerUnavailable: no answer: whether it took effect is unknown.
        ConfigError: the server refuses.
    """
    reply = call_many(client, [Call(name, keys, args)])[0]
    if isinstance(reply, Exception):
        raise reply
    return reply


async def load_async(client: redis.asyncio.Redis) -> None:
    """`load` for asyncio."""
    with translate():
        try:
            await client.function_load(source())
        except redis.ResponseError as error:
            _check_loaded(error)


async def call_many_async(
    client: redis.asyncio.Redis, calls: Sequence[Call], then: Sequence[Command] = ()
) -> list[Any]:
    """`call_many` for asyncio."""
    with translate():
        replies = await _round_trip_async(client, calls, then)
        again = [i for i, reply in enumerate(replies) if _missing(reply)]
        if again:
            await load_async(client)
            again += range(len(calls), len(calls) + len(then))
            repeated = await _round_trip_async(client, [calls[i] for i in again if i < len(calls)], then)
            for i, reply in zip(again, repeated, strict=True):
                replies[i] = reply
    return [_settle(reply) for reply in replies]


async def _round_trip_async(client: redis.asyncio.Redis, calls: Sequence[Call], then: Sequence[Command]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipe:
        for call in calls:
            pipe.execute_command(*_command(call))
        for command in then:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))
