"""A chunk as it lies in the log, and as a worker uses it. What cannot be used is rejected here, at the door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from pipeline.broker.entries import Raw, fields_of
from pipeline.broker.keys import MAX_NAME_BYTES, check_stream, partition_of
from pipeline.component import Array
from pipeline.errors import ChunkRejected
from pipeline.manifest import InputSpec
from pipeline.output import Output

try:
    from pipeline import _chunks
except ImportError:  # no compiler, where this was installed
    _chunks = None  # type: ignore[assignment]

COMPILED = _chunks is not None

MAX_CHUNK_BYTES = 1 << 20
"""Default bound of one chunk's data: 65 s of 8 kHz int16 mono."""

MAX_SEQ = 2**62
_NEEDED = {b"stream", b"seq", b"data"}
_KNOWN = _NEEDED | {b"end", b"given", b"begin"}
_LITTLE: dict[str, np.dtype[Any]] = {"int16": np.dtype("<i2"), "float32": np.dtype("<f4")}
_TOLD = 5  # names in a message


Note = dict[str, object]
"""What has to be told about a chunk: its `kind`, and facts."""


@dataclass(slots=True)
class Chunk:
    """One usable chunk.

    Attributes:
        id: the entry's id in its log; `ms` is its time part.
        data: whole samples of the topic's type, all finite, interleaved; `joined` makes an array of them.
        end: the stream ends with this chunk.
        given: float32 `[n]`: what the producer gives the stream from here on, in the order of the manifest's `given`.
        begin: the first chunk of a life, as its producer says: nothing that was given before holds any more.
        notes: what has to be told about it (gap, expiry, reset), published with its result.
        output: what the batcher made of it; None for a duplicate, which changes nothing.
    """

    id: bytes
    ms: int
    stream: str
    seq: int
    data: bytes
    end: bool = False
    given: Array | None = None
    begin: bool = False
    notes: Sequence[Note] = ()
    output: Output | None = None

    def note(self, kind: str, **facts: object) -> None:
        """There is something to tell about it."""
        self.notes = [*self.notes, {"kind": kind, **facts}]


@dataclass(frozen=True, slots=True)
class Rejection:
    """One entry that is no chunk: its id and fields as they were, and why."""

    id: bytes
    fields: Mapping[bytes, bytes]
    reason: str
    message: str


class Parsed(NamedTuple):
    """Of some entries those that are chunks, those that are none, and how many bytes they all are."""

    chunks: list[Chunk]
    rejections: list[Rejection]
    size_bytes: int


class ChunkParser:
    """Entries of a partition's input log to Chunks.

    | field    | bound                                                  | else, the reason                       |
    |----------|--------------------------------------------------------|----------------------------------------|
    | `stream` | 1 to 200 bytes of UTF-8, printable, no braces          | `bad_stream`, `wrong_partition`        |
    | `seq`    | digits, at most 19; 0 to 2**62                         | `bad_seq`                              |
    | `data`   | at most `max_chunk_bytes`, whole samples, finite       | `oversize`, `wrong_size`, `not_finite` |
    | `end`    | absent, `0` or `1`                                     | `bad_end`                              |
    | `begin`  | absent, or `1`                                         | `bad_begin`                            |
    | `given`  | absent, or `given_bytes` of float32, finite (0: any)   | `bad_given`                            |
    | others   | none, and none twice                                   | `unknown_field`, `missing_field`       |
    | the id   | its time below 2**62 ms                                | `bad_id`                               |
    """

    def __init__(
        self,
        spec: InputSpec,
        *,
        partition: int,
        partitions: int,
        max_chunk_bytes: int = MAX_CHUNK_BYTES,
        given_bytes: int = 0,
        compiled: bool = COMPILED,
    ) -> None:
        self._compiled = compiled
        self._spec, self._dtype = spec, _LITTLE[spec.sample_type]
        self._sample_bytes = self._dtype.itemsize * spec.channels
        self._floats = self._dtype.kind == "f"
        self._partition, self._partitions = partition, partitions
        self._max_bytes, self._given_bytes = max_chunk_bytes, given_bytes
        self._rules = (partition, partitions, MAX_NAME_BYTES, self._sample_bytes, max_chunk_bytes, self._floats)

    def all(self, entries: Sequence[Raw]) -> Parsed:
        """Entries, in order, as chunks, and those that are none. Nearly all go the short way, by compiled code."""
        plain, odd, size_bytes = self._plain(entries)
        if not odd:
            return Parsed([Chunk(*parts) for parts in plain], [], size_bytes)  # type: ignore[misc]
        chunks: list[Chunk] = []
        rejections: list[Rejection] = []
        for entry, parts in zip(entries, plain, strict=True):
            if parts is not None:
                chunks.append(Chunk(*parts))
                continue
            entry_id, flat = entry
            size_bytes += sum(map(len, flat))
            try:
                chunks.append(self(entry_id, flat))
            except ChunkRejected as rejected:
                rejections.append(Rejection(entry_id, fields_of(flat), rejected.reason, str(rejected)))
        return Parsed(chunks, rejections, size_bytes)

    def _plain(self, entries: Sequence[Raw]) -> tuple[Sequence[tuple[bytes, int, str, int, bytes] | None], int, int]:
        """Of each entry the beginning of a Chunk; None of one that is not as nearly all are, be it right or wrong. How
        many are None, and the size of the others, of which all but the data is bounded, and little."""
        if not self._compiled:
            return [None] * len(entries), len(entries), 0
        return _chunks.parse(entries, *self._rules)

    def __call__(self, entry_id: bytes, flat: Sequence[bytes]) -> Chunk:
        """The entry as a chunk; its fields are names and values in turns.

        Raises ChunkRejected with one of these reasons: `unknown_field`, `missing_field`, `bad_stream`,
        `wrong_partition`, `bad_seq`, `bad_id`, `bad_end`, `bad_begin`, `bad_given`, `oversize`, `wrong_size`,
        `not_finite`.
        """
        fields = fields_of(flat)
        _check_names(fields)
        name, number, data = fields[b"stream"], fields[b"seq"], fields[b"data"]
        stream = _stream(name)
        if crc32(name) % self._partitions != self._partition:
            home = partition_of(stream, self._partitions)
            raise ChunkRejected(
                "wrong_partition",
                f"stream {stream!r} belongs to partition {home}, found in {self._partition}: "
                "its producer must use crc32(stream) % partitions",
            )
        if not number.isdigit() or len(number) > 19 or (seq := int(number)) > MAX_SEQ:
            raise ChunkRejected("bad_seq", f"seq {number[:40]!r}: expected a whole number from 0 to 2**62")
        ms = int(entry_id[: entry_id.index(b"-")])
        if ms > MAX_SEQ:  # whoever may push may choose ids; times are counted in 63 bits
            raise ChunkRejected("bad_id", f"id {entry_id.decode()}: its time lies beyond 2**62 ms; push with id *")
        end = fields.get(b"end", b"0")
        if end not in (b"0", b"1"):
            raise ChunkRejected("bad_end", f"end is {end[:20]!r}; expected 0 or 1")
        if fields.get(b"begin", b"1") != b"1":
            raise ChunkRejected("bad_begin", f"begin is {fields[b'begin'][:20]!r}; expected 1, or no such field")
        self._check_data(data)
        given = _given(fields[b"given"], self._given_bytes, self._max_bytes) if b"given" in fields else None
        return Chunk(entry_id, ms, stream, seq, data, end == b"1", given, b"begin" in fields)

    def joined(self, chunks: Sequence[Chunk]) -> tuple[Array, Array]:
        """The samples of chunks, end to end, `[sum, channels]`, and of each how many, int64 `[n]`."""
        sizes = np.array([len(chunk.data) for chunk in chunks], np.int64) // self._sample_bytes
        samples = np.frombuffer(b"".join([chunk.data for chunk in chunks]), self._dtype)
        return samples.reshape(-1, self._spec.channels), sizes

    def _check_data(self, data: bytes) -> None:
        if len(data) > self._max_bytes:
            raise ChunkRejected(
                "oversize", f"{len(data)} bytes of data, at most {self._max_bytes}: send shorter chunks"
            )
        if len(data) % self._sample_bytes:
            spec = self._spec
            raise ChunkRejected(
                "wrong_size",
                f"{len(data)} bytes of data: not a multiple of {self._sample_bytes} "
                f"({spec.channels} x {spec.sample_type})",
            )
        if self._floats and not np.isfinite(np.frombuffer(data, self._dtype)).all():
            raise ChunkRejected("not_finite", "samples hold NaN or infinity: repair them, or leave the chunk out")


def _check_names(fields: Mapping[bytes, bytes]) -> None:
    unknown = fields.keys() - _KNOWN
    if unknown:  # also a name that stood twice: the reader keeps both, the second under another name
        names = ", ".join(name[:40].decode(errors="replace") for name in nsmallest(_TOLD, unknown))
        more = f" and {len(unknown) - _TOLD} more" if len(unknown) > _TOLD else ""
        raise ChunkRejected(
            "unknown_field",
            f"fields {names}{more}; a chunk has stream, seq, data and, at its end, end, each once: push these alone",
        )
    missing = _NEEDED - fields.keys()
    if missing:
        raise ChunkRejected(
            "missing_field",
            f"no field {', '.join(sorted(m.decode() for m in missing))}; a chunk has stream, seq and data",
        )


def _stream(raw: bytes) -> str:
    if len(raw) > MAX_NAME_BYTES:  # before anything that takes as long as it is, and before it is kept
        raise ChunkRejected("bad_stream", f"stream {raw[:40]!r}... has {len(raw)} bytes; at most {MAX_NAME_BYTES}")
    try:
        return check_stream(raw.decode())
    except UnicodeDecodeError:
        raise ChunkRejected("bad_stream", f"stream {raw[:40]!r} is not UTF-8") from None


def _given(data: bytes, size: int, max_bytes: int) -> Array | None:
    """None for a bundle that takes none: it is for another group on the topic, and here a chunk without samples."""
    if size == 0 and len(data) <= max_bytes:
        return None
    if len(data) != size:
        raise ChunkRejected("bad_given", f"given {len(data)} bytes; expected {size} of float32")
    values = np.frombuffer(data, "<f4")
    if not np.isfinite(values).all():
        raise ChunkRejected("bad_given", "given NaN or infinity: repair it")
    return values
