"""Which workers of a group live: a register in which each says so, for a time. A hint for sharing partitions evenly.

It gives no right to anything: only a lease does. Where it is wrong, partitions are shared unevenly for a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

from pipeline.broker.connection import raise_first, translate
from pipeline.broker.functions import Call, call
from pipeline.broker.keys import workers_key
from pipeline.broker.later import Later


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that lives.

    held: how many partitions it has. fingerprint: of the bundle that it runs, hex. arithmetic: what its machine makes
    of that (`Bundle.arithmetic`).
    """

    owner: str
    held: int
    fingerprint: str
    arithmetic: str


def join(client: redis.Redis, topic: str, group: str, me: Member, ttl_ms: int) -> list[Member]:
    """Say that this worker lives, for `ttl_ms` from now. Returns all that live, this one first.

    Raises:
        BrokerUnavailable: no answer; call again.
    """
    return joining(client, topic, group, me, ttl_ms).answer()


def joining(client: redis.Redis, topic: str, group: str, me: Member, ttl_ms: int) -> Later[list[Member]]:
    """`join`, whose answer is taken later."""

    def members(replies: list[Any]) -> list[Member]:
        (flat,) = raise_first(replies)
        return [_member(owner, said) for owner, said in zip(flat[::2], flat[1::2], strict=True)]

    facts = f"{me.held} {me.fingerprint} {me.arithmetic}"
    return Later(client, [Call("sb_join", [workers_key(topic, group)], [me.owner, ttl_ms, facts])], [], members)


def leave(client: redis.Redis, topic: str, group: str, owner: str) -> None:
    """Say that this worker is gone, so that others need not wait for its time to end.

    Raises:
        BrokerUnavailable: no answer; its time ends by itself.
    """
    call(client, "sb_leave", [workers_key(topic, group)], [owner])


def look(client: redis.Redis, topic: str, group: str) -> list[Member]:
    """All that live, without being one of them.

    Raises:
        BrokerUnavailable: no answer; call again.
    """
    with translate(), client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.hgetall(workers_key(topic, group))
        (seconds, micros), said = raise_first(pipe.execute(raise_on_error=False))
    now_ms, found = seconds * 1000 + micros // 1000, []
    for owner, text in said.items():
        until_ms, _, facts = text.partition(b" ")
        if until_ms.isdigit() and int(until_ms) > now_ms:
            found.append(_member(owner, facts))
    return found


def _member(owner: bytes, said: bytes) -> Member:
    held, fingerprint, arithmetic, *_ = [*said.decode(errors="replace").split(" "), "", ""]
    return Member(owner.decode(errors="replace"), int(held) if held.isdigit() else 0, fingerprint, arithmetic)
