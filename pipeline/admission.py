"""Which chunks a row takes: duplicates, gaps, idleness and ends, decided by seq and log time alone.

Log time is the time part of a chunk's id, so every worker and every replay decides alike.

    row \\ seq    below next_seq     equal          above
    new          takes any seq: a stream may begin anywhere
    live         duplicate          goes on        gap: reported, starts afresh (or goes on)
    ended        duplicate          a new life of the stream, starts afresh

A live row idle for longer than `idle_ms` is new again (reported), a tombstone after `tombstone_ms` (silently).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.belt import ENDED, LIVE, NEW, RowLayout
from pipeline.chunk import Chunk
from pipeline.component import Array


@dataclass(frozen=True)
class Policy:
    """How long state lives, and what a gap does.

    idle_ms: log time after which a silent stream's state has expired.
    tombstone_ms: log time for which an ended stream's late resends are known as duplicates.
    outage_ms: how long chunks may wait for a worker; rows are kept for so much longer, by the server's clock.
    on_gap: `restart` a stream whose chunks are missing, or `continue` as if the signal had been joined.
    """

    idle_ms: int = 3_600_000
    tombstone_ms: int = 600_000
    outage_ms: int = 86_400_000
    on_gap: Literal["restart", "continue"] = "restart"


def admit(rows: Array, chunks: Sequence[Chunk], layout: RowLayout, policy: Policy) -> Array:
    """Judge one chunk for each row; note what is to be told; make rows fresh that start afresh.

    Args:
        rows: gathered rows `[n]`, changed here: fresh rows are blanked, the counters of taken ones advanced.
        chunks: n chunks, one a row.
    Returns:
        bool `[n]`: True where the chunk is to be run, False where it is a duplicate.
    """
    n = len(chunks)
    seqs, times = [chunk.seq for chunk in chunks], [chunk.ms for chunk in chunks]
    seq, ms = np.array(seqs, np.int64), np.array(times, np.int64)
    end = np.array([chunk.end for chunk in chunks], bool)
    # As it nearly always is, each stream goes on. Lists: of a few rows they are compared sooner than arrays.
    goes_on = rows["status"].tolist() == [LIVE] * n and rows["next_seq"].tolist() == seqs
    if goes_on and max(times, default=0) - min(rows["last_ms"].tolist(), default=0) <= policy.idle_ms:
        _advance(rows, slice(None), seq, ms, end)
        return np.ones(n, bool)
    status, idle = rows["status"], ms - rows["last_ms"]
    expired = (status == LIVE) & (idle > policy.idle_ms)
    known = np.where(expired | ((status == ENDED) & (idle > policy.tombstone_ms)), NEW, status)
    duplicate = (known != NEW) & (seq < rows["next_seq"])
    gap = (known == LIVE) & (seq > rows["next_seq"])
    for i in np.flatnonzero(expired).tolist():
        chunks[i].note("expired", idle_ms=int(idle[i]))
    for i in np.flatnonzero(gap).tolist():
        chunks[i].note("gap", expected_seq=int(rows["next_seq"][i]), got_seq=int(seq[i]))
    take: Array = ~duplicate
    afresh = take & (known != LIVE)
    if policy.on_gap == "restart":
        afresh |= gap
    if afresh.any():
        restarted = afresh & gap & ~np.fromiter((chunk.begin for chunk in chunks), bool, n)
        given = {name: rows[name][restarted] for name in layout.kept}
        rows[afresh] = layout.blank
        for name, values in given.items():
            rows[name][restarted] = values
    _advance(rows, take, seq, ms, end)
    return take


def _advance(rows: Array, which: Array | slice, seq: Array, ms: Array, end: Array) -> None:
    """Note in rows which chunk they have got."""
    rows["status"][which] = np.where(end[which], ENDED, LIVE)
    rows["next_seq"][which] = seq[which] + 1
    rows["last_ms"][which] = ms[which]
