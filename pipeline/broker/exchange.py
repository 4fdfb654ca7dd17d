"""One round trip as a value: what to call, what its replies mean. Blocking and asyncio differ in the sending alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import redis
import redis.asyncio

from pipeline.broker.functions import Call, Value, call_many, call_many_async
from pipeline.errors import BrokerUnavailable

T = TypeVar("T")


class Exchange(Generic[T]):
    """`calls` go out together, `then` (one more command) behind them on the same connection."""

    calls: Sequence[Call] = ()
    then: Sequence[Value] = ()

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
