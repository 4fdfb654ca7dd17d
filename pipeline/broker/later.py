"""A question to the server whose answer is taken later: who asks has other work to do until it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import redis

from pipeline.broker.asked import Asked
from pipeline.broker.connection import timeout_ms, translate
from pipeline.broker.functions import Call, Calls
from pipeline.broker.resp import Command
from pipeline.errors import BrokerUnavailable

T = TypeVar("T")


class Later(Generic[T]):
    """Calls of functions and commands behind them, in one round trip; sent when this is made.

    Whoever does not take the answer calls `drop`. All but that raise BrokerUnavailable, and it is over: ask again.

    Args:
        read: makes the answer of the replies, in order; each is a value, or the (translated) exception of that call.
    """

    def __init__(
        self, client: redis.Redis, calls: Sequence[Call], then: Sequence[Command], read: Callable[[list[Any]], T]
    ) -> None:
        self._read = read
        self._late_s = time.monotonic() + timeout_ms(client) / 1000
        with translate():
            self._asked: Asked | Calls = Calls(client, calls, then) if calls else Asked(client, then)

    def ready(self) -> bool:
        """Whether the answer is there, or its beginning. Raises BrokerUnavailable, too, when it is too late for one."""
        with translate():
            if self._asked.ready(0):
                return True
        if time.monotonic() < self._late_s:
            return False
        self._asked.drop()
        raise BrokerUnavailable("no answer from Redis within the timeout, while others may be answered: ask again")

    def answer(self) -> T:
        """The answer; once. Waits for it."""
        with translate():
            return self._read(self._asked.replies())

    def drop(self) -> None:
        """Let go of the answer: whether what was asked for was done will not be known."""
        self._asked.drop()
