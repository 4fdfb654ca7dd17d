"""What a worker would make of a chunk that is pushed again: would it be dropped as a duplicate?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.admission import Policy
    from pipeline.broker.dead import Brief, Client

_LONGEST_SEQ = 19


def gone_on(
    client: Client, topic: str, group: str, letters: Sequence[Brief], policy: Policy
) -> dict[tuple[int, bytes], str]:
    """Why a worker would drop the chunks of letters, by their (partition, id); those it would look at are not in it.

    By the rows as they are now: chunks that still wait in the log may carry a stream further before its turn comes.
    """
    import numpy as np

    from pipeline.belt import LIVE, NEW, RowLayout
    from pipeline.broker.dead import clock_ms, row_heads

    layout = RowLayout(bytes(16), ())  # every row begins with the same counters, whatever its bundle
    asked = [(letter, name) for letter in letters if (name := _name(letter)) is not None]
    heads = row_heads(client, topic, group, [(letter.partition, name) for letter, name in asked], layout.header_bytes)
    now_ms, why = clock_ms(client), {}
    for (letter, name), head in zip(asked, heads, strict=True):
        if len(head) < layout.header_bytes:
            continue
        row = np.frombuffer(head.ljust(layout.row_bytes, b"\0"), layout.dtype)[0]
        next_seq, status, idle_ms = int(row["next_seq"]), int(row["status"]), now_ms - int(row["last_ms"])
        remembered = status != NEW and idle_ms <= (policy.idle_ms if status == LIVE else policy.tombstone_ms)
        if remembered and int(letter.seq) < next_seq:
            why[letter.partition, letter.id] = (
                f"its stream has gone on: the next chunk of {name!r} is {next_seq}, so a worker would drop "
                f"{letter.seq.decode()} as a duplicate (--force pushes it all the same)"
            )
    return why


def _name(letter: Brief) -> str | None:
    """The stream of a letter, if a worker could know it and the letter's place in it."""
    from pipeline.broker.keys import check_stream
    from pipeline.errors import ChunkRejected

    if not letter.seq.isdigit() or len(letter.seq) > _LONGEST_SEQ:
        return None
    try:
        return check_stream(letter.stream.decode())
    except (UnicodeDecodeError, ChunkRejected):
        return None
