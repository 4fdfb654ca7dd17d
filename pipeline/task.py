"""A partition's task: entries to chunks, chunks to what one commit writes. No I/O, no clock.

entries -> take -> run (all tasks in one batch) -> effects -> commit
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from pipeline.admission import Policy, admit
from pipeline.batcher import Batcher
from pipeline.behind import Behind
from pipeline.belt import ENDED, Belt
from pipeline.broker.entries import Raw
from pipeline.broker.keys import MAX_NAME_BYTES
from pipeline.chunk import MAX_CHUNK_BYTES, Chunk, ChunkParser, Note, Rejection
from pipeline.component import Array
from pipeline.manifest import InputSpec

_FLOAT = np.dtype("<f4")

Fields = dict[bytes, bytes]
Row = tuple[str, bytes | memoryview, int]


class Effects(NamedTuple):
    """All that a batch of one partition changes; written in one atomic commit.

    offset: id of the last entry covered. entries: how many there were. results, dead: `(id, fields)`,
    ids rising. rows: `(stream, bytes, ttl_ms)`. behind: how far the rows that are not among them are (see `Behind`).
    counts: what is to be counted once it is stored. heard: `happenings` has something to tell.
    """

    offset: bytes
    entries: int
    results: list[tuple[bytes, Fields]]
    dead: list[tuple[bytes, Fields]]
    rows: list[Row]
    behind: bytes = b""
    counts: Mapping[str, int] = MappingProxyType({})
    heard: bool = False


class Happening(NamedTuple):
    """Something out of the ordinary: `rejected`, or the kind of a note."""

    kind: str
    stream: str
    facts: dict[str, object]


class Task:
    """One partition between a read and its commit.

    Args:
        publish: `events` makes a result entry for a chunk that has something to say (events, scores, an end,
            a note, audio); `chunks` makes one for every chunk.
        given_bytes: what a producer may give a stream, by the bundle's manifest.
        row_every_chunks: of a stream, between two commits of its row.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        spec: InputSpec,
        policy: Policy,
        *,
        publish: Literal["events", "chunks"] = "events",
        max_chunk_bytes: int = MAX_CHUNK_BYTES,
        given_bytes: int = 0,
        row_every_chunks: int = 1,
    ) -> None:
        self.partition = partition
        self.policy = policy
        self.chunks: list[Chunk] = []
        self.size_bytes = 0  # of all that was taken last, names and what was rejected as well
        self._parse = ChunkParser(
            spec, partition=partition, partitions=partitions, max_chunk_bytes=max_chunk_bytes, given_bytes=given_bytes
        )
        self.joined = self._parse.joined
        self._every = publish == "chunks"
        self._behind = Behind(row_every_chunks)
        self._rejections: list[Rejection] = []
        self._offset = b""
        self._entries = 0

    def take(self, entries: Sequence[Raw]) -> list[str]:
        """Begin a batch with entries of the partition's log, in order. Returns the streams whose rows it needs."""
        self.chunks, self._rejections, self.size_bytes = self._parse.all(entries)
        self._entries = len(entries)
        if entries:
            self._offset = entries[-1][0]
        return list(dict.fromkeys([chunk.stream for chunk in self.chunks]))

    def effects(self, belt: Belt) -> Effects:
        """What the batch changed, once `run` has been over it. Of several tasks at once: the module's `effects`."""
        return effects([self], belt)[0]

    def _settle(self, belt: Belt) -> tuple[Effects, list[str]]:
        """The batch's effects but for the rows, and the streams whose rows belong to them."""
        done: list[Chunk] = []
        results: list[tuple[bytes, Fields]] = []
        notes: list[Note] = []
        for chunk in self.chunks:
            if chunk.output is not None:
                done.append(chunk)
                if chunk.notes:
                    notes += chunk.notes
                if (fields := self._result(chunk)) is not None:
                    results.append((chunk.id, fields))
        dead = [(r.id, _dead_fields(r)) for r in self._rejections] if self._rejections else []
        counts = {"chunks": len(done)}
        if dead:
            counts["rejected"] = len(dead)
        if len(done) < len(self.chunks):
            counts["duplicates"] = len(self.chunks) - len(done)
        for note in notes:
            counts[str(note["kind"])] = counts.get(str(note["kind"]), 0) + 1
        due = self._behind.due(done)
        if self._behind.delays:
            belt.hold([chunk.stream for chunk in done])
            belt.let_go(due)
        heard = bool(notes or dead)
        return Effects(self._offset, self._entries, results, dead, [], self._behind.upto, counts, heard), due

    @property
    def rows_behind(self) -> int:
        """Streams whose stored row lacks something that is on the belt."""
        return len(self._behind)

    def catch_up(self, offset: bytes, belt: Belt) -> Effects:
        """The rows of all streams that are behind, for a commit that moves no offset: from then on none is."""
        streams = self._behind.all()
        rows = _rows(streams, belt, self.policy)
        belt.let_go(streams)
        return Effects(offset, 0, [], [], rows)

    def leave_out_known(self, belt: Belt, corrupt: Container[str]) -> None:
        """Of chunks that are run again, leave out those whose effects the rows hold, and the streams whose row was
        lost: these start afresh, with their next new chunk, which tells so.

        A row holds a chunk that is older than its last one. Of one millisecond, what it holds has lower numbers: within
        one, no stream expires, and only then can numbers begin anew.
        """
        slots = belt.slots([chunk.stream for chunk in self.chunks])
        known = zip(belt.view(slots, "last_ms").tolist(), belt.view(slots, "next_seq").tolist(), strict=True)
        self.chunks = [
            chunk
            for chunk, (last_ms, next_seq) in zip(self.chunks, known, strict=True)
            if (chunk.ms, chunk.seq) >= (last_ms, next_seq) and chunk.stream not in corrupt
        ]

    def replayed(self, upto: bytes, offset: bytes, belt: Belt) -> Effects:
        """The rows of what was run again, up to `upto`; nothing is published by it, for all of it was."""
        streams = list(dict.fromkeys(chunk.stream for chunk in self.chunks if chunk.output is not None))
        self.chunks, self._rejections = [], []
        return Effects(offset, 0, [], [], _rows(streams, belt, self.policy), upto if upto != offset else b"")

    def happenings(self) -> list[Happening]:
        """What a person should hear of this batch: of each kind one stream as an example, and how many there were."""
        found: dict[str, list[tuple[str, Mapping[str, object]]]] = {}
        for rejection in self._rejections:
            stream = rejection.fields.get(b"stream", b"")[:MAX_NAME_BYTES].decode(errors="replace")
            found.setdefault("rejected", []).append((stream, {"reason": rejection.reason, "why": rejection.message}))
        for chunk in self.chunks:
            for note in chunk.notes:
                facts = {name: value for name, value in note.items() if name != "kind"}
                found.setdefault(str(note["kind"]), []).append((chunk.stream, facts))
        return [Happening(kind, of[0][0], {**of[0][1], "count": len(of)}) for kind, of in found.items()]

    def _result(self, chunk: Chunk) -> Fields | None:
        output, notes = chunk.output, chunk.notes
        assert output is not None
        events, scores, samples = output.events, output.scores, output.samples
        if not (self._every or events or scores or samples or chunk.end or notes):
            return None
        fields = {b"stream": chunk.stream.encode(), b"seq": b"%d" % chunk.seq, b"events": b"[]"}
        if events:
            fields[b"events"] = json.dumps([asdict(event) for event in events], separators=(",", ":")).encode()
        if scores:
            joined = _joined(scores)
            fields[b"scores"], fields[b"shape"] = joined.tobytes(), _shape(*joined.shape)
        if samples:
            fields[b"samples"] = _joined(samples).tobytes()
        if notes:
            fields[b"notes"] = json.dumps(notes, separators=(",", ":")).encode()
        if chunk.end:
            fields[b"end"] = b"1"
        return fields


@lru_cache(64)
def _shape(rows: int, columns: int) -> bytes:
    return b"%d,%d" % (rows, columns)


def _joined(parts: Sequence[Array]) -> Array:
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return joined if joined.dtype is _FLOAT else joined.astype(_FLOAT)


def effects(tasks: Sequence[Task], belt: Belt, ran: Ran | None = None) -> list[Effects]:
    """What a batch changed in each of its partitions, once `run` has been over it, and has given `ran`. Rows are
    gathered for all at once: that costs about as much for one partition as for sixty."""
    settled = [task._settle(belt) for task in tasks]
    streams = [stream for _, due in settled for stream in due]
    gathered = ran.rows if ran is not None and ran.streams == streams else None
    rows = iter(_rows(streams, belt, tasks[0].policy, gathered))
    for made, due in settled:
        made.rows.extend(islice(rows, len(due)))
    return [made for made, _ in settled]


def _rows(streams: Sequence[str], belt: Belt, policy: Policy, gathered: Array | None = None) -> list[Row]:
    rows = belt.gather(belt.slots(streams)) if gathered is None else gathered
    # Log time decides what has expired; the key's own TTL only collects what nobody asked for. It runs while no
    # worker does, and chunks wait: so it is longer by as long as they may.
    ttl = np.where(rows["status"] == ENDED, policy.tombstone_ms, policy.idle_ms) + policy.outage_ms
    return list(zip(streams, belt.layout.seal(rows), ttl.tolist(), strict=True))


class Ran(NamedTuple):
    """The last round of a `run`: its streams, and a copy of their rows as they then were."""

    streams: list[str]
    rows: Array


def run(tasks: Sequence[Task], belt: Belt, batcher: Batcher) -> Ran | None:
    """Run the chunks of all tasks, whose rows are on the belt, in shared batches.

    A stream's chunks go in order, one a round, so a round holds each row once.
    """
    ran = None
    for members in _rounds([chunk for task in tasks for chunk in task.chunks]):
        streams = [chunk.stream for chunk in members]
        slots = belt.slots(streams)
        rows = belt.gather(slots)
        admitted = admit(rows, members, belt.layout, tasks[0].policy)
        work = members
        if not admitted.all():
            taken = np.flatnonzero(admitted)
            slots, rows, work = slots[taken], rows[taken], [members[i] for i in taken.tolist()]
            streams = [chunk.stream for chunk in work]
        if belt.layout.kept:
            _give(work, rows, batcher)
        ends = np.array([chunk.end for chunk in work], bool)
        outputs = batcher.run_joined(rows, *tasks[0].joined(work), ends)
        for chunk, output in zip(work, outputs, strict=True):
            chunk.output = output
            if output.broken:
                chunk.note("broken")
        belt.scatter(slots, rows)
        ran = Ran(streams, rows)
    return ran


def _rounds(chunks: list[Chunk]) -> list[list[Chunk]]:
    """Chunks in rounds that hold each stream once, in its order. (A stream is of one partition, so of one task.)"""
    depths: Counter[str] = Counter()
    rounds: list[list[Chunk]] = []
    if len({chunk.stream for chunk in chunks}) == len(chunks):
        return [chunks] if chunks else []
    for chunk in chunks:
        depth = depths[chunk.stream]
        if depth == len(rounds):
            rounds.append([])
        rounds[depth].append(chunk)
        depths[chunk.stream] = depth + 1
    return rounds


def _give(work: Sequence[Chunk], rows: Array, batcher: Batcher) -> None:
    """Put what producers gave into the rows; note the streams that begin without."""
    for i, chunk in enumerate(work):
        if chunk.given is not None:
            batcher.give(rows[i], chunk.given)
        elif chunk.data and batcher.lacks(rows[i]):
            chunk.note("not_given")


def _dead_fields(rejection: Rejection) -> Fields:
    known = (b"stream", b"seq", b"data", b"end")
    fields = {name: rejection.fields[name] for name in known if name in rejection.fields}
    fields |= {b"entry." + name: value for name, value in rejection.fields.items() if name not in known}
    return {b"reason": rejection.reason.encode(), b"message": rejection.message.encode(), **fields}
