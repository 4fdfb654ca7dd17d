"""The belt against a dictionary."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import belt
from pipeline.belt import ENDED, LIVE, Belt, RowLayout
from pipeline.component import Field
from pipeline.errors import ConfigError, RowCorrupt

LAYOUT = RowLayout(
    b"0123456789abcdef", [Field("rest", "float32", (3, 1)), Field("model.h", "float32", (5,)), Field("n", "int64", ())]
)


@settings(max_examples=60)
@given(st.integers(1, 12), st.lists(st.lists(st.integers(0, 30), max_size=12, unique=True), max_size=15))
def test_rows_survive_a_belt_that_is_too_small(capacity: int, batches: list[list[int]]) -> None:
    """Whatever falls off comes back from where it was committed; a batch's own rows never fall off."""
    belt, stored, truth = Belt(LAYOUT, capacity), dict[str, bytes](), dict[str, int]()
    for batch in batches:
        streams = [f"s{i}" for i in batch[:capacity]]
        belt.begin(streams)
        for stream in belt.missing(streams):
            belt.place(stream, 0, stored.get(stream))
        slots = belt.slots(streams)
        assert len(set(slots.tolist())) == len(streams)
        rows = belt.gather(slots)
        assert rows["n"].tolist() == [truth.get(stream, 0) for stream in streams]
        rows["n"] += 1
        rows["status"] = LIVE
        belt.scatter(slots, rows)
        stored |= dict(zip(streams, LAYOUT.dump(rows), strict=True))
        for stream in streams:
            truth[stream] = truth.get(stream, 0) + 1
        assert len(belt) <= capacity


def test_a_batchs_own_rows_stay_when_many_are_forgotten_at_once() -> None:
    """A belt forgets a sixteenth at a time; where fewer rows than that are old, only those."""
    belt, names = Belt(LAYOUT, 64), [f"s{i}" for i in range(64)]
    for batch in (names, [*names[:62], "new"]):
        belt.begin(batch)
        for stream in belt.missing(batch):
            belt.place(stream, 0, None)
    assert belt.missing(["new", *names]) == names[62:]


def test_rows_of_the_batch_before_are_forgotten_last() -> None:
    """Their commit may be on its way. Held rows leave so few to choose from that all of them would go at once."""
    belt = Belt(LAYOUT, 64)
    held, old, before = ([f"{kind}{i}" for i in range(n)] for kind, n in (("held", 60), ("old", 2), ("before", 2)))
    for batch in (held, old, before):
        belt.begin(batch)
        for stream in batch:
            belt.place(stream, 0, None)
    belt.hold(held)
    belt.begin(["new"])
    belt.place("new", 0, None)
    assert belt.missing(before) == []
    assert belt.missing(old) != []


def test_dropping_a_partition_forgets_its_rows_only() -> None:
    belt = Belt(LAYOUT, 8)
    belt.begin(["a", "b", "c"])
    for stream, partition in (("a", 0), ("b", 1), ("c", 0)):
        belt.place(stream, partition, None)
    assert belt.drop_partition(0) == 2
    assert belt.missing(["a", "b", "c"]) == ["a", "c"]


def test_a_slot_keeps_nothing_of_its_last_tenant() -> None:
    belt = Belt(LAYOUT, 1)
    belt.begin(["a"])
    belt.place("a", 0, None)
    belt.rows.view(np.uint8)[:] = 255
    belt.drop_partition(0)
    belt.begin(["b"])
    belt.place("b", 0, None)
    assert belt.gather(belt.slots(["b"])).tobytes() == LAYOUT.blank.tobytes()


def test_a_tombstone_is_small() -> None:
    rows = np.repeat(np.array([LAYOUT.blank]), 2)
    rows["status"] = [LIVE, ENDED]
    rows["next_seq"] = 7
    live, ended = LAYOUT.dump(rows)
    assert len(ended) == LAYOUT.header_bytes < len(live) == LAYOUT.row_bytes
    row = np.frombuffer(LAYOUT.parse(ended), LAYOUT.dtype)[0]
    assert (int(row["next_seq"]), int(row["status"])) == (7, ENDED)


@given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from([LIVE, ENDED]))
def test_a_byte_that_changed_is_seen(place: int, change: int, status: int) -> None:
    """Wherever it is: a counter out of its bounds would end the worker, a wrong state would pass for a right one."""
    rows = np.array([LAYOUT.blank])
    rows["status"], rows["next_seq"], rows["model.h"] = status, 7, 0.25
    (stored,) = LAYOUT.dump(rows)
    damaged = bytearray(stored)
    damaged[place % len(stored)] ^= change
    assert LAYOUT.parse(stored)[: len(stored)] == stored
    with pytest.raises(RowCorrupt):
        LAYOUT.parse(bytes(damaged))


@given(st.binary(min_size=1, max_size=40), st.booleans())
def test_rows_are_the_same_with_zlibs_checksums(h: bytes, plain_first: bool) -> None:
    """Where there is no isal: workers of both kinds read each other's rows."""
    rows = np.array([LAYOUT.blank])
    rows["model.h"] = np.frombuffer(h.ljust(40, b"0"), np.int8)[:5]
    first, second = (zlib.crc32, belt.crc32) if plain_first else (belt.crc32, zlib.crc32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(belt, "crc32", first)
        (stored,) = LAYOUT.dump(rows)
        patch.setattr(belt, "crc32", second)
        assert LAYOUT.parse(stored) == stored


def test_a_row_of_another_layout_is_refused() -> None:
    """The same bundle under a runtime whose fields lie elsewhere: as many bytes, another meaning."""
    fields = [Field("rest", "float32", (3, 1)), Field("n", "int64", ()), Field("model.h", "float32", (5,))]
    other = RowLayout(b"0123456789abcdef", fields)
    assert other.row_bytes == LAYOUT.row_bytes
    for stored in other.dump(np.array([other.blank])):
        with pytest.raises(RowCorrupt, match="another version"):
            LAYOUT.parse(stored)


def test_a_batch_larger_than_the_belt_is_refused() -> None:
    with pytest.raises(ConfigError, match="enlarge the belt"):
        Belt(LAYOUT, 2).begin(["a", "b", "c"])
    with pytest.raises(ConfigError):
        Belt(LAYOUT, 0)
