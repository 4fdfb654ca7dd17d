"""`make fuzz`: entries found by coverage (atheris), through a partition's task: parse, admit, run, effects.

No server here, so that it makes thousands of runs a second; tests/fuzz/test_entries.py has one. The property: no
exception; an entry is a chunk or is rejected under a reason that is documented; and a neighbour in the same batch,
in the same partition, has the same row and the same result as if it had been alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import atheris

with atheris.instrument_imports(
    include=[
        "pipeline.chunk",
        "pipeline.task",
        "pipeline.admission",
        "pipeline.broker.keys",
        "pipeline.broker.partition",
    ]
):
    from pipeline import task as tasks
    from pipeline.admission import Policy
    from pipeline.broker.keys import partition_of
    from pipeline.broker.partition import MAX_DEAD_BYTES, bounded

from pipeline.batcher import Batcher
from pipeline.belt import Belt
from tests import zoo
from tests.fuzz.entries import REASONS

BUNDLE = zoo.bundle("sensor")
BATCHER = Batcher(BUNDLE, max_batch=8)
MAX_CHUNK_BYTES, ENTRIES = 480, 6
GOOD = b"good"
SAMPLES = zoo.signal(BUNDLE.manifest.input, 8).astype("<f4").tobytes()
NAMES = [b"stream", b"seq", b"data", b"end", b"", b"Stream", b"reason"]
VALUES = [b"", b"0", b"1", b"2", b"99", b"4611686018427387904", GOOD, b"evil", b"a:b", b"{", b"\xc3\xbc", b"\x00" * 24]

Fields = dict[bytes, bytes]


def entries_of(data: bytes) -> list[Fields]:
    """Bytes to entries: names and values that matter, often; any others, sometimes."""
    given = atheris.FuzzedDataProvider(data)

    def one(likely: list[bytes]) -> bytes:
        n = given.ConsumeIntInRange(0, len(likely))
        return likely[n] if n < len(likely) else given.ConsumeBytes(given.ConsumeIntInRange(0, 500))

    entries = []
    while given.remaining_bytes() and len(entries) < ENTRIES:
        entry = {b"stream": b"evil", b"seq": b"1", b"data": b""} if given.ConsumeBool() else {}
        entry |= {one(NAMES): one(VALUES) for _ in range(given.ConsumeIntInRange(1, 6))}
        entries.append(entry)
    return entries


def play(found: list[tuple[bytes, Fields]]) -> tuple[tasks.Effects, tasks.Task]:
    partition = partition_of(GOOD.decode(), 2)
    task = tasks.Task(partition, 2, BUNDLE.manifest.input, Policy(), publish="chunks", max_chunk_bytes=MAX_CHUNK_BYTES)
    belt = Belt(BATCHER.layout, 16)
    streams = task.take([(id_, [part for pair in fields.items() for part in pair]) for id_, fields in found])
    belt.begin(streams)
    for stream in streams:
        belt.place(stream, partition, None)
    tasks.run([task], belt, BATCHER)
    return task.effects(belt), task


def of_good(effects: tasks.Effects) -> tuple[list[Mapping[bytes, bytes]], list[bytes]]:
    results = [fields for _, fields in effects.results if fields[b"stream"] == GOOD]
    return results, [row for stream, row, _ in effects.rows if stream == GOOD.decode()]


def good(seq: int, at: int, end: bool) -> tuple[bytes, Fields]:
    chunk = {b"stream": GOOD, b"seq": b"%d" % seq, b"data": SAMPLES}
    return b"%d-0" % at, {**chunk, b"end": b"1"} if end else chunk


ALONE = of_good(play([good(2**40, 1, False), good(2**40 + 1, 9, True)])[0])


def test_one_input(data: bytes) -> None:
    """The name that atheris' own examples use; pytest does not look into this file."""
    between = [(b"%d-0" % (n + 2), fields) for n, fields in enumerate(entries_of(data))]
    # A chunk of the good stream that is well-formed and above its seq is not hostile, it is another producer.
    between = [(id_, f) for id_, f in between if not (f.get(b"stream") == GOOD and int_of(f.get(b"seq")) >= 2**40)]
    effects, task = play([good(2**40, 1, False), *between, good(2**40 + 1, 9, True)])
    assert of_good(effects) == ALONE
    taken = {chunk.id for chunk in task.chunks}
    put_aside = dict(effects.dead)
    assert taken | set(put_aside) == {id_ for id_, _ in between} | {b"1-0", b"9-0"}
    assert not taken & set(put_aside)
    for fields in put_aside.values():
        assert fields[b"reason"].decode() in REASONS
        assert sum(len(name) + len(value) for name, value in bounded(fields).items()) <= 2 * MAX_DEAD_BYTES
    task.happenings()


def int_of(raw: bytes | None) -> int:
    return int(raw) if raw and raw.isdigit() else -1


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
