"""One round trip as a value: what to call, what its replies mean. Blocking and asyncio differ in the sending alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, Generic, TypeVar, cast

import redis
import redis.asyncio

from pipeline.broker.functions import Call, call_many, call_many_async
from pipeline.broker.resp import Command
from pipeline.errors import BrokerUnavailable, StatebeltError

T = TypeVar("T")
Client = redis.Redis
AsyncClient = redis.asyncio.Redis
"""Their names for those who may not import redis."""


class Exchange(Generic[T]):
    """`calls` go out together, `then` (more commands) behind them on the same connection."""

    calls: Sequence[Call] = ()
    then: Sequence[Command] = ()

    def settle(self, replies: Sequence[Any]) -> T:
        """What the replies of `calls`, and of `then`, amount to; raises what they tell."""
        raise NotImplementedError

    def lost(self, error: BrokerUnavailable) -> BrokerUnavailable:
        """What it means that no reply came: whether the calls took effect is unknown."""
        return error


def exchange(client: redis.Redis, what: Exchange[T]) -> T:
    """Send and settle. Raises as `what` does."""
    try:
        replies = call_many(client, what.calls, what.then) if what.calls else []
    except BrokerUnavailable as error:
        raise what.lost(error) from error
    return what.settle(replies)


async def exchange_async(client: redis.asyncio.Redis, what: Exchange[T]) -> T:
    """`exchange` for asyncio."""
    try:
        replies = await call_many_async(client, what.calls, what.then) if what.calls else []
    except BrokerUnavailable as error:
        raise what.lost(error) from error
    return what.settle(replies)


Steps = Generator[Exchange[Any] | float, Any, T]
"""An act of several exchanges: it yields one and gets what it settled to (or its error), or seconds to pause."""


def drive(client: redis.Redis, steps: Steps[T], pause: Callable[[float], object] = time.sleep) -> T:
    """Run an act to its end, blocking. Raises what it does not catch."""
    answer: Any = None
    error: StatebeltError | None = None
    with closing(steps):  # what ends this from without (Ctrl-C, a cancelled task) ends the act at once
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as done:
                return cast(T, done.value)
            answer = error = None
            try:
                answer = pause(step) if isinstance(step, float) else exchange(client, step)
            except StatebeltError as raised:
                error = raised


async def drive_async(client: redis.asyncio.Redis, steps: Steps[T]) -> T:
    """`drive` for asyncio."""
    answer: Any = None
    error: StatebeltError | None = None
    with closing(steps):  # what ends this from without (Ctrl-C, a cancelled task) ends the act at once
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as done:
                return cast(T, done.value)
            answer = error = None
            try:
                answer = await (asyncio.sleep(step) if isinstance(step, float) else exchange_async(client, step))
            except StatebeltError as raised:
                error = raised
