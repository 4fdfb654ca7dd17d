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
from weakref import WeakSet

import redis
import redis.asyncio

from pipeline.broker.asked import Asked
from pipeline.broker.connection import translate, translated
from pipeline.broker.resp import Command, Value, Word
from pipeline.errors import ConfigError

_MANY = frozenset({"sb_commit", "sb_append"})
"""Functions of a partition that are registered for several as well, under a name that ends in `_many`."""

_MANY_KEYS = 100
"""Of more, a row or a chunk each, a call holds more data than the server's core keeps at hand: it took a tenth longer
as one call."""

_APART = (redis.exceptions.ClusterCrossSlotError, redis.exceptions.OutOfMemoryError)
"""With which a server refuses them as one, and may take each by itself."""

_ROUNDS = 3
"""It refuses them as one, then finds the function missing."""


class Call(NamedTuple):
    """One function call: `name` as in statebelt.lua (`sb_commit`), its keys and its arguments. `words`: how many words
    these are, where a dictionary stands for its names and values; 0: as many as there are arguments."""

    name: str
    keys: Sequence[str]
    args: Sequence[Word]
    words: int = 0


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


def _as_one(calls: Sequence[Call]) -> tuple[Word, ...]:
    version = library().rsplit("_", 1)[1]
    keys: list[str] = []
    sizes: list[int] = []
    args: list[Word] = []
    for _, call_keys, call_args, words in calls:
        keys += call_keys
        args += call_args
        sizes += (len(call_keys), words or len(call_args))
    return ("FCALL", f"{calls[0].name}_many_{version}", len(keys), *keys, len(calls), *sizes, *args)


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


_apart: WeakSet[Any] = WeakSet()
"""Clients of clusters, which refuse calls on several partitions as one."""


class _Round:
    """What to send of several calls, and what their replies amount to. No I/O.

    Small calls on several partitions go out as one, for whoever waits for what they write is then woken once. A server
    that is a cluster has partitions in different slots, and refuses: there each call goes by itself, from then on. One
    that is short of memory may have enough for some of them.
    """

    def __init__(self, client: Any, calls: Sequence[Call], then: Sequence[Command]) -> None:
        self._client, self._calls, self._then = client, calls, then
        self._open = list(range(len(calls)))
        self._rounds = 0
        self._together = self._short_of_memory = False
        self.replies: list[Any] = [None] * len(calls)
        self.missing = False

    def commands(self) -> list[Command]:
        """Those calls that were not run yet, and `then`."""
        calls = [self._calls[i] for i in self._open]
        few = sum([len(call.keys) for call in calls]) <= _MANY_KEYS
        alone = self._short_of_memory or self._client in _apart
        self._together = few and not alone and len(calls) > 1 and calls[0].name in _MANY
        return [*([_as_one(calls)] if self._together else map(_command, calls)), *self._then]

    def more(self, answers: Sequence[Any]) -> bool:
        """Take in what the commands were answered. Returns whether to send again, the functions loaded if `missing`:
        what was refused for these reasons was not run."""
        count = 1 if self._together else len(self._open)
        answered, then, again = list(answers[:count]), answers[count:], False
        if self._together:
            (one,) = answered
            answered = one if isinstance(one, list) else [one] * len(self._open)
            if isinstance(one, redis.exceptions.ClusterCrossSlotError):
                _apart.add(self._client)
            self._short_of_memory = isinstance(one, redis.exceptions.OutOfMemoryError)
            again = isinstance(one, _APART)
        for i, reply in zip(self._open, answered, strict=True):
            self.replies[i] = reply
        self.missing = any(map(_missing, answered))
        if not again:
            self._open = [i for i in self._open if _missing(self.replies[i])] if self.missing else []
        self._rounds += 1
        if self._open and self._rounds < _ROUNDS:
            return True
        self.replies = [_settle(reply) for reply in [*self.replies, *then]]
        return False


class Calls:
    """Calls that were sent, in one round trip, and whose replies are still to be read: `Asked`, for functions.

    `then` are more commands, run after them on their connection; their replies are the last. Both making it and
    `replies` raise as `call_many`.
    """

    def __init__(self, client: redis.Redis, calls: Sequence[Call], then: Sequence[Command] = ()) -> None:
        self._client, self._round = client, _Round(client, calls, then)
        with translate():
            self._asked = Asked(client, self._round.commands())

    def replies(self) -> list[Any]:
        """Wait for them; once. Each is a value, or the (translated) exception of that call alone."""
        with translate():
            while self._round.more(self._asked.replies()):
                if self._round.missing:
                    load(self._client)
                self._asked = Asked(self._client, self._round.commands())
        return self._round.replies

    def ready(self, timeout_s: float) -> bool:
        """Wait so long for the first reply. Returns whether it, or its beginning, is there."""
        with translate():
            return self._asked.ready(timeout_s)

    def drop(self) -> None:
        """Let go of the replies: whether the calls were run will not be known."""
        self._asked.drop()


def call_many(client: redis.Redis, calls: Sequence[Call], then: Sequence[Command] = ()) -> list[Any]:
    """Run calls in one round trip: `Calls`, at once.

    Raises:
        BrokerUnavailable: the connection broke: which of the calls took effect is unknown.
    """
    return Calls(client, calls, then).replies()


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
    asked = _Round(client, calls, then)
    with translate():
        while asked.more(await _round_trip_async(client, asked.commands())):
            if asked.missing:
                await load_async(client)
    return asked.replies


async def _round_trip_async(client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))
