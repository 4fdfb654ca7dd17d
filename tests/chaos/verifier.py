"""Lost, doubled, out of order, different: what the results logs hold, against what the whole signals yield.

Knows the documented keys and fields and nothing else: reads with plain redis-py, computes with the oracle. What the
workers, producers or any test say of themselves is not asked.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import redis

from tests.chaos.oracle import Oracle
from tests.chaos.plan import Sent

Entry = tuple[bytes, Mapping[bytes, bytes]]

SHOWN = 20


@dataclass
class Verdict:
    """How many of each fault. All of them zero, and every chunk of every stream was looked at: the proof holds.

    lost: a chunk that was pushed and has no result. doubled: a chunk's result once more. disordered: a result behind
    one of a later chunk. different: other scores, other events, an end that is none. misplaced: a result under an id
    that is not its chunk's. unexplained: a note (gap, expired, broken, row_corrupt...) where no fault of the schedule
    excuses one. strangers: results of what nobody pushed. dead: chunks among the dead letters.
    """

    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    different: int = 0
    misplaced: int = 0
    unexplained: int = 0
    strangers: int = 0
    dead: int = 0
    examples: list[str] = field(default_factory=list)
    streams: int = 0
    chunks: int = 0
    results: int = 0
    compared_bytes: int = 0

    FAULTS = ("lost", "doubled", "disordered", "different", "misplaced", "unexplained", "strangers", "dead")

    @property
    def faults(self) -> dict[str, int]:
        """Those that are not zero."""
        return {name: count for name in self.FAULTS if (count := getattr(self, name))}

    @property
    def silent(self) -> bool:
        return not self.faults

    def found(self, fault: str, what: str) -> None:
        setattr(self, fault, getattr(self, fault) + 1)
        if len(self.examples) < SHOWN:
            self.examples.append(f"{fault}: {what}")

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def log(client: redis.Redis, key: str) -> Iterator[Entry]:
    """All entries of a log, a page at a time."""
    after = "-"
    while page := client.xrange(key, min=after, count=2000):
        yield from page
        after = f"({page[-1][0].decode()}"


def verify(
    client: redis.Redis,
    topic: str,
    group: str,
    partitions: int,
    sent: Sequence[Sent],
    oracle: Oracle,
    *,
    every_chunk: bool = True,
) -> Verdict:
    """Read a group's logs and judge them.

    Args:
        every_chunk: workers ran with publish=chunks; else only chunks that have something to say are looked for.
    """
    results: dict[str, list[Entry]] = defaultdict(list)
    ids: dict[str, dict[bytes, tuple[bytes, bytes]]] = {}
    dead = 0
    homes: dict[str, str] = {}
    for partition in range(partitions):
        base = f"sb:{{{topic}/{partition}}}:"
        chunks = {id_: (f.get(b"stream", b""), f.get(b"seq", b"")) for id_, f in log(client, f"{base}in")}
        for id_, entry in log(client, f"{base}{group}:out"):
            name = entry.get(b"stream", b"").decode(errors="replace")
            results[name].append((id_, entry))
            homes[name] = base
        ids[base] = chunks
        dead += client.xlen(f"{base}{group}:dead")
    verdict = judge(results, sent, oracle, every_chunk=every_chunk)
    for name, entries in results.items():
        _check_ids(verdict, name, entries, ids[homes[name]])
    verdict.dead += dead
    return verdict


def _check_ids(
    verdict: Verdict, name: str, entries: Iterable[Entry], chunks: Mapping[bytes, tuple[bytes, bytes]]
) -> None:
    """A result lies under its chunk's id. Chunks that were trimmed by now cannot be asked."""
    oldest = min(map(_order, chunks), default=None)
    for id_, entry in entries:
        if oldest is None or _order(id_) < oldest:
            continue
        if chunks.get(id_) != (entry.get(b"stream"), entry.get(b"seq")):
            verdict.found("misplaced", f"{name}: result {id_!r} of chunk {entry.get(b'seq')!r}")


def _order(id_: bytes) -> tuple[int, int]:
    ms, _, number = id_.partition(b"-")
    return int(ms), int(number)


def judge(
    results: Mapping[str, Sequence[Entry]], sent: Sequence[Sent], oracle: Oracle, *, every_chunk: bool = True
) -> Verdict:
    """Results of each stream, in the order of their log, against what was sent."""
    verdict = Verdict()
    known = {each.stream for each in sent}
    assert len(known) == len(sent)
    for name, entries in results.items():
        if name not in known:
            verdict.found("strangers", f"{len(entries)} results of {name!r}, which nobody pushed")
    for each in sent:
        _judge_stream(verdict, results.get(each.stream, ()), each, oracle, every_chunk)
    return verdict


def _judge_stream(verdict: Verdict, entries: Sequence[Entry], sent: Sent, oracle: Oracle, every_chunk: bool) -> None:
    whole = oracle(sent.signal)
    due = oracle.due(sent.stops)
    number = {seq: i for i, seq in enumerate(sent.seqs)}
    seen: set[int] = set()
    highest = -1
    events: list[object] = []
    for id_, entry in entries:
        seq = int(entry[b"seq"])
        what = f"{sent.stream} chunk {seq} at {id_.decode()}"
        i = number.get(seq)
        if i is None:
            verdict.found("strangers", what)
            continue
        verdict.results += 1
        if i in seen:
            verdict.found("doubled", what)
            continue
        if i < highest:
            verdict.found("disordered", what)
        seen.add(i)
        highest = max(highest, i)
        if notes := entry.get(b"notes"):
            verdict.found("unexplained", f"{what}: {notes.decode()}")
        if (entry.get(b"end") == b"1") != (i == len(sent.seqs) - 1):
            verdict.found("different", f"{what}: end is {entry.get(b'end')!r}")
        events += json.loads(entry[b"events"])
        if oracle.publishes_scores:
            expected = whole.scores[due[i - 1] if i else 0 : due[i]]
            shape = b"%d,%d" % expected.shape if len(expected) else None
            if (entry.get(b"scores", b""), entry.get(b"shape")) != (expected.astype("<f4").tobytes(), shape):
                verdict.found("different", f"{what}: scores of shape {entry.get(b'shape')!r}, expected {shape!r}")
            verdict.compared_bytes += expected.nbytes
        elif b"scores" in entry:
            verdict.found("different", f"{what}: scores that nobody asked for")
    for i, seq in enumerate(sent.seqs):
        says = every_chunk or i == len(sent.seqs) - 1 or (oracle.publishes_scores and due[i] > (due[i - 1] if i else 0))
        if says and i not in seen:
            verdict.found("lost", f"{sent.stream} chunk {seq} ({i + 1} of {len(sent.seqs)})")
    if events != (whole.events or []):
        verdict.found("different", f"{sent.stream}: events {events}, expected {whole.events}")
    verdict.compared_bytes += len(json.dumps(events))
    verdict.streams += 1
    verdict.chunks += len(sent.seqs)
