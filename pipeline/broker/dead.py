"""Dead letters: chunks that were put aside. To look through, to push again, to remove.

Whoever may push chooses what they hold: bytes of any kind, up to 16 MiB each, any number. So a list never transfers
the letters themselves, and nothing here interprets them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import redis

from pipeline.broker.connection import no_key, raise_first, translate
from pipeline.broker.functions import call
from pipeline.broker.keys import Keys

Client = redis.Redis
"""What a connection is to those who may not know redis."""

PAGE = 500
_RETRIED_AT_ONCE = 100
_RETRIED_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A chunk put aside. `id` is the chunk's own; `fields` hold its reason and what was pushed."""

    partition: int
    id: bytes
    fields: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Brief:
    """A dead letter in short: raw bytes, as pushed (empty where there were none), cut to 200 (`seq`: 40).

    `data_bytes` is the length of its data; `cut` tells that the letter itself is not whole.
    """

    partition: int
    id: bytes
    reason: bytes
    stream: bytes
    seq: bytes
    data_bytes: int
    cut: bool


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of one letter: `new_id` of the chunk in the log, or None and why the letter was not retried."""

    partition: int
    id: bytes
    new_id: bytes | None
    why: str = ""


def briefs(
    client: redis.Redis,
    topic: str,
    group: str,
    partitions: Sequence[int],
    *,
    after: bytes = b"0-0",
    reason: str = "",
    stream: bytes = b"",
) -> Iterator[list[Brief]]:
    """Dead letters in short, page by page, oldest first within each partition.

    Letters that come while this runs are not among them, so it ends, also where each is retried and dies again.

    Args:
        after: an id of the first of `partitions`, behind which to begin.
        reason, stream: only such letters; empty for any.
    Raises:
        BrokerUnavailable: no answer; begin again behind the last one.
        ConfigError: a name that is none, or the key is no log.
    """
    for partition in partitions:
        dead = Keys(topic, group, partition).dead
        last = _last_id(client, dead)
        while last is not None and after:
            after, *found = call(client, "sb_dead_letters", [dead], [after, last, PAGE, reason, stream])
            if found:
                yield [
                    Brief(partition, id_, why, name, seq, size, bool(cut)) for id_, why, name, seq, size, cut in found
                ]
        after = b"0-0"


def _last_id(client: redis.Redis, dead: str) -> bytes | None:
    with translate(), client.pipeline(transaction=False) as pipe:
        pipe.xinfo_stream(dead)
        (info,) = pipe.execute(raise_on_error=False)
    if no_key(info):
        return None
    last: bytes = raise_first([info])[0]["last-generated-id"]
    return last


def letter(client: redis.Redis, topic: str, group: str, partition: int, id_: bytes) -> DeadLetter | None:
    """One letter whole, or None if it is not (or no longer) there. Raises as `briefs`."""
    with translate(), client.pipeline(transaction=False) as pipe:
        pipe.xrange(Keys(topic, group, partition).dead, min=id_, max=id_)
        (found,) = raise_first(pipe.execute(raise_on_error=False))
    return DeadLetter(partition, *found[0]) if found else None


def dead_letters(
    client: redis.Redis, topic: str, group: str, partitions: Sequence[int], after: bytes = b"0-0", count: int = 100
) -> list[DeadLetter]:
    """Whole dead letters after the id `after`, oldest first, at most `count` a partition.

    Raises:
        BrokerUnavailable: no answer; call again.
    """
    with translate(), client.pipeline(transaction=False) as pipe:
        for partition in partitions:
            pipe.xrange(Keys(topic, group, partition).dead, min=b"(" + after, count=count)
        replies = raise_first(pipe.execute(raise_on_error=False))
    return [
        DeadLetter(partition, id_, fields)
        for partition, entries in zip(partitions, replies, strict=True)
        for id_, fields in entries
    ]


def retry(client: redis.Redis, topic: str, group: str, chosen: Sequence[Brief]) -> list[Retried]:
    """Push the chunks of letters again, as they were, to the end of their log; each letter goes in the same act.

    Letters are taken partition by partition in the order of their ids, so that a stream's chunks keep theirs. After
    a lost reply call again: what was done is then told as missing. A chunk that is still no good dies again.

    Raises:
        BrokerUnavailable: no answer: which were retried is unknown.
        ConfigError: the server refuses.
    """
    done: list[Retried] = []
    for keys, ids in _calls(topic, group, chosen):
        replies = call(client, "sb_retry", [keys.log, keys.dead], ids)
        done += [Retried(keys.partition, id_, *_outcome(*reply)) for id_, reply in zip(ids, replies, strict=True)]
    return done


def _calls(topic: str, group: str, chosen: Sequence[Brief]) -> Iterator[tuple[Keys, list[bytes]]]:
    """Letters in order, in calls that keep the server for no more than a moment."""
    ids: list[bytes] = []
    size_bytes, partition = 0, -1
    for brief in sorted(chosen, key=lambda brief: (brief.partition, order(brief.id))):
        full = len(ids) == _RETRIED_AT_ONCE or size_bytes + brief.data_bytes > _RETRIED_BYTES
        if ids and (full or brief.partition != partition):
            yield Keys(topic, group, partition), ids
            ids, size_bytes = [], 0
        partition = brief.partition
        ids.append(brief.id)
        size_bytes += brief.data_bytes
    if ids:
        yield Keys(topic, group, partition), ids


def order(id_: bytes) -> tuple[int, int]:
    """An id as the pair of numbers that it is sorted by.

    >>> order(b"1700000000000-2") < order(b"1700000000000-10")
    True
    """
    ms, _, seq = id_.partition(b"-")
    return int(ms), int(seq)


def _outcome(kind: bytes, detail: bytes = b"") -> tuple[bytes | None, str]:
    if kind == b"OK":
        return detail, ""
    if kind == b"MISSING":
        return None, "it is not there: never was, or was retried, dropped or trimmed meanwhile"
    if kind == b"CUT":
        return None, "it was too large to be kept whole, so what is left is not what was pushed"
    return None, f"Redis refuses its chunk: {detail.decode(errors='replace')}"


def drop_dead(client: redis.Redis, topic: str, group: str, partition: int, ids: Sequence[bytes]) -> int:
    """Remove dead letters by id. Returns how many were there. Raises as `dead_letters`."""
    with translate():
        return int(client.xdel(Keys(topic, group, partition).dead, *ids)) if ids else 0


def row_heads(
    client: redis.Redis, topic: str, group: str, wanted: Sequence[tuple[int, str]], size_bytes: int
) -> list[bytes]:
    """The first bytes of the rows of (partition, stream); empty where a stream has no row. Raises as `dead_letters`."""
    with translate(), client.pipeline(transaction=False) as pipe:
        for partition, stream in wanted:
            pipe.getrange(Keys(topic, group, partition).row(stream), 0, size_bytes - 1)
        return raise_first(pipe.execute(raise_on_error=False))


def clock_ms(client: redis.Redis) -> int:
    """The server's clock in ms, by which it gives ids. Raises as `dead_letters`."""
    with translate():
        seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000
