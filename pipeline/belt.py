"""The belt: the worker's table of carried state, one row of bytes a live stream.

A row is the stream's whole state and its checkpoint: bytes gathered for a batch are the bytes that Redis
keeps, so there is nothing to serialise. Slots are found by name; nothing else of a stream is an object.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.component import Array, Field
from pipeline.errors import ConfigError, RowCorrupt

try:
    from isal.isal_zlib import crc32
except ImportError:  # no such processor: zlib's, the same number in five times as long
    from zlib import crc32

NEW, LIVE, ENDED = 0, 1, 2
"""A row's status: never used, carrying a stream, or the tombstone of one."""

_BODY = 24
"""Where the checksum ends, and what it covers begins."""

_HEADER: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("fingerprint", "u1", (16,)),
    ("checksum", "<u8", ()),  # of what follows, in the bytes that Redis keeps; nobody reads it on the belt
    ("status", "<i8", ()),
    ("next_seq", "<i8", ()),  # the seq that the next chunk must have
    ("last_ms", "<i8", ()),  # log time (the id) of the last chunk: idleness is decided by it
    ("samples", "<i8", ()),  # samples seen since the stream started afresh
    ("frames", "<i8", ()),  # frames the model has consumed
    ("rest_samples", "<i8", ()),  # samples of an unfinished block, in `rest`
)


class RowLayout:
    """Where everything lies in a row: the header's counters, then the components' fields.

    Args:
        fingerprint: the bundle's, 16 bytes; a row of another bundle is refused by it.
        fields: of all components, names already distinct.
        kept: names of those that a stream keeps when it starts afresh in the midst of its life: what it was given.

    The layout is a numpy structured dtype, so a gathered block has typed views of every field.
    """

    def __init__(self, fingerprint: bytes, fields: Sequence[Field], kept: Sequence[str] = ()) -> None:
        self.kept = tuple(kept)
        self.fingerprint = np.frombuffer(fingerprint, np.uint8)
        columns: list[tuple[str, str, tuple[int, ...]]] = []
        end = 0

        def pad(to: int) -> None:
            # numpy copies named fields only: unnamed gaps would carry whatever the memory held before.
            nonlocal end
            gap = -end % to
            if gap:
                columns.append((f"pad_{end}", "u1", (gap,)))
                end += gap

        for name, dtype, shape in [*_HEADER, *((f.name, _little(f.dtype), f.shape) for f in fields)]:
            columns.append((name, dtype, shape))
            end += np.dtype(dtype).itemsize * math.prod(shape)
            pad(8)
            if name == _HEADER[-1][0]:
                self.header_bytes = end
        pad(64)
        self.row_bytes = end
        self.dtype = np.dtype(columns)
        blank = np.zeros((), self.dtype)
        blank["fingerprint"] = self.fingerprint
        for f in fields:
            blank[f.name] = f.initial
        self.blank = blank
        self._blank_bytes = blank.tobytes()
        self._layout_sum = crc32(repr(columns).encode())  # bytes of another layout are no row of this one
        self._floats = [f.name for f in fields if np.dtype(f.dtype).kind == "f"]

    def seal(self, rows: Array) -> list[memoryview]:
        """Gathered rows, their checksums written into them here, as views of the bytes that Redis keeps: a live row
        whole, a tombstone by its header."""
        raw, full = rows.view(np.uint8).data, self.row_bytes
        ended = [status == ENDED for status in rows["status"].tolist()]
        starts = range(0, len(raw), full)
        views = [raw[at : at + (self.header_bytes if end else full)] for at, end in zip(starts, ended, strict=True)]
        rows["checksum"] = [crc32(view[_BODY:], self._layout_sum) for view in views]
        return views

    def dump(self, rows: Array) -> list[bytes]:
        """`seal` of a copy, as bytes of their own."""
        return [bytes(view) for view in self.seal(rows.copy())]

    def parse(self, stored: bytes) -> bytes:
        """The row's bytes, complete. Raises RowCorrupt if these are no row of this bundle."""
        if stored[: len(self.fingerprint)] != self.fingerprint.tobytes():
            raise RowCorrupt(
                f"a row with fingerprint {stored[:16].hex()}, expected {self.fingerprint.tobytes().hex()}: "
                "it was written by another bundle; the stream starts afresh"
            )
        if len(stored) not in (self.row_bytes, self.header_bytes):
            raise RowCorrupt(f"a row of {len(stored)} bytes, expected {self.row_bytes}; the stream starts afresh")
        checksum = crc32(memoryview(stored)[_BODY:], self._layout_sum)
        if checksum.to_bytes(8, "little") != stored[_BODY - 8 : _BODY]:
            raise RowCorrupt("a row that is damaged, or of another version; the stream starts afresh")
        if len(stored) == self.row_bytes:
            row = np.frombuffer(stored, self.dtype)
            for name in self._floats:
                # Some operators turn NaN into a number: a poisoned row would pass for a sound one.
                if not np.isfinite(row[name]).all():
                    raise RowCorrupt(f"a row whose {name} holds NaN or infinity; the stream starts afresh")
            return stored
        return stored + self._blank_bytes[self.header_bytes :]


def _little(dtype: str) -> str:
    return np.dtype(dtype).newbyteorder("<").str


class Belt:
    """`capacity` rows and the names that hold them. Full, it forgets the rows used longest ago.

    Forgetting loses nothing: a row on the belt was committed before it is forgotten, or is held. Where a commit may be
    on its way, that needs `room_for` three batches: one on its way, one in hand, one that can be forgotten.
    """

    def __init__(self, layout: RowLayout, capacity: int) -> None:
        if capacity < 1:
            raise ConfigError(f"a belt of {capacity} rows; give it at least as many as streams share a read")
        self.layout = layout
        self.rows = np.zeros(capacity, layout.dtype)
        self._slots: dict[str, int] = {}
        self._names: list[str | None] = [None] * capacity
        self._partition = np.full(capacity, -1, np.int64)
        self._used = np.zeros(capacity, np.int64)
        self._held = np.zeros(capacity, bool)
        self._held_count: int | None = 0  # None: to be counted anew
        self._free = list(range(capacity - 1, -1, -1))
        self._tick = 0

    @property
    def capacity(self) -> int:
        """Rows that fit."""
        return len(self.rows)

    def __len__(self) -> int:
        return len(self._slots)

    def missing(self, streams: Iterable[str]) -> list[str]:
        """Those of `streams` that hold no row here, in order, each once."""
        return [stream for stream in dict.fromkeys(streams) if stream not in self._slots]

    def begin(self, streams: Sequence[str]) -> bool:
        """A new batch needs `streams`: mark the rows that are here as in use, so that `place` spares them. Returns
        whether all are here."""
        if len(streams) > self.capacity:
            raise ConfigError(f"{len(streams)} streams in one batch, a belt of {self.capacity} rows: enlarge the belt")
        self._tick += 1
        held = [slot for stream in streams if (slot := self._slots.get(stream)) is not None]
        self._used[held] = self._tick
        return len(held) == len(streams)

    def place(self, stream: str, partition: int, stored: bytes | None) -> None:
        """Give `stream` a row: the stored one, or a blank one. Raises RowCorrupt and places nothing."""
        row = None if stored is None else self.layout.parse(stored)
        slot = self._slots.get(stream)
        if slot is None:
            if not self._free:
                self._evict()
            slot = self._free.pop()
            self._slots[stream] = slot
            self._names[slot] = stream
        self.rows[slot] = self.layout.blank if row is None else np.frombuffer(row, self.layout.dtype)[0]
        self._partition[slot] = partition
        self._used[slot] = self._tick

    def slots(self, streams: Sequence[str]) -> Array:
        """Where the rows of `streams` lie, int64 `[n]`."""
        return np.array([*map(self._slots.__getitem__, streams)], np.int64)

    def gather(self, slots: Array) -> Array:
        """A copy of the rows, `[n]` of the layout's dtype."""
        return self.rows[slots]

    def view(self, slots: Array, column: str) -> Array:
        """One column of the rows, `[n, ...]`."""
        column_of: Array = self.rows[column][slots]
        return column_of

    def scatter(self, slots: Array, rows: Array) -> None:
        """Put gathered rows back."""
        self.rows[slots] = rows

    def hold(self, streams: Sequence[str]) -> None:
        """Spare the rows of these streams, which hold more than what is stored, until `let_go`."""
        self._held[self.slots(streams)] = True
        self._held_count = None

    def let_go(self, streams: Sequence[str]) -> None:
        """The rows of these streams are stored: they may be forgotten."""
        self._held[self.slots(streams)] = False
        self._held_count = None

    def room_for(self, streams: int) -> bool:
        """Whether so many streams fit beside the rows that are held."""
        if self._held_count is None:
            self._held_count = int(np.count_nonzero(self._held))
        return streams + self._held_count <= self.capacity

    def drop_partition(self, partition: int) -> int:
        """Forget a partition's rows (released, or fenced: they may be ahead of what was committed)."""
        return self._forget(np.flatnonzero(self._partition == partition))

    def _evict(self) -> None:
        # A sixteenth at a time, so that finding the oldest is paid once for many.
        count = max(1, self.capacity // 16)
        taken = np.flatnonzero((self._partition >= 0) & (self._used < self._tick) & ~self._held)
        older = taken[self._used[taken] < self._tick - 1]
        if len(older):  # the commit of the batch before this one may be on its way
            taken = older
        if len(taken) > count:
            taken = taken[np.argpartition(self._used[taken], count)[:count]]
        self._forget(taken)

    def _forget(self, slots: Array) -> int:
        for slot in slots.tolist():
            name = self._names[slot]
            if name is not None:
                del self._slots[name]
            self._names[slot] = None
            self._free.append(slot)
        self._partition[slots] = -1
        if self._held_count != 0:
            self._held[slots] = False
            self._held_count = None
        return len(slots)
