"""Entries at the door: what is a chunk, and by which reason the rest is rejected."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.admission import Policy
from pipeline.broker.entries import fields_of
from pipeline.broker.keys import partition_of
from pipeline.chunk import Chunk, ChunkParser
from pipeline.errors import ChunkRejected
from pipeline.manifest import InputSpec
from pipeline.task import Task

AUDIO = InputSpec(sample_rate_hz=8000)
SENSOR = InputSpec(sample_rate_hz=50, channels=3, sample_type="float32")
GOOD = {b"stream": b"s", b"seq": b"7", b"data": b"\x01\x00\xff\xff"}
NAN = np.array([[1, 2, np.nan]], "<f4").tobytes()
INF = np.array([[1, -np.inf, 2]], "<f4").tobytes()


def flat(fields: Mapping[bytes, bytes]) -> list[bytes]:
    """As read off the wire: names and values in turns."""
    return [part for pair in fields.items() for part in pair]


def parse(
    entry_id: bytes,
    fields: Mapping[bytes, bytes],
    spec: InputSpec,
    *,
    partition: int = 0,
    partitions: int = 1,
    **bounds: int,
) -> Chunk:
    return ChunkParser(spec, partition=partition, partitions=partitions, **bounds)(entry_id, flat(fields))


def test_a_chunk() -> None:
    chunk = parse(b"1700-3", {**GOOD, b"end": b"1"}, AUDIO)
    assert (chunk.ms, chunk.stream, chunk.seq, chunk.end) == (1700, "s", 7, True)
    assert chunk.data == GOOD[b"data"]


@pytest.mark.parametrize(
    ("change", "reason", "spec"),
    [
        ({b"extra": b"1"}, "unknown_field", AUDIO),
        ({b"data": None}, "missing_field", AUDIO),
        ({b"stream": None}, "missing_field", AUDIO),
        ({b"seq": None}, "missing_field", AUDIO),
        ({b"stream": b""}, "bad_stream", AUDIO),
        ({b"stream": b"\xff\xfe"}, "bad_stream", AUDIO),
        ({b"stream": b"x" * 201}, "bad_stream", AUDIO),
        ({b"stream": b"a{b}"}, "bad_stream", AUDIO),
        ({b"stream": b"a\nb"}, "bad_stream", AUDIO),
        ({b"seq": b"-1"}, "bad_seq", AUDIO),
        ({b"seq": b"1.5"}, "bad_seq", AUDIO),
        ({b"seq": b"9" * 30}, "bad_seq", AUDIO),
        ({b"seq": "²".encode()}, "bad_seq", AUDIO),
        ({b"end": b"yes"}, "bad_end", AUDIO),
        ({b"data": b"123"}, "wrong_size", AUDIO),
        ({b"data": b"1" * 8}, "wrong_size", SENSOR),
        ({b"data": b"0" * 1_000_002}, "oversize", AUDIO),
        ({b"data": NAN}, "not_finite", SENSOR),
        ({b"data": INF}, "not_finite", SENSOR),
    ],
)
def test_what_is_rejected(change: dict[bytes, bytes | None], reason: str, spec: InputSpec) -> None:
    fields = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(ChunkRejected) as rejected:
        parse(b"1-0", fields, spec, max_chunk_bytes=1_000_000)
    assert rejected.value.reason == reason
    assert len(str(rejected.value)) > 20


def test_a_stream_in_a_foreign_partition() -> None:
    at = partition_of("s", 8)
    with pytest.raises(ChunkRejected, match="belongs to partition") as rejected:
        parse(b"1-0", GOOD, AUDIO, partition=(at + 1) % 8, partitions=8)
    assert rejected.value.reason == "wrong_partition"
    assert parse(b"1-0", GOOD, AUDIO, partition=at, partitions=8).stream == "s"


@pytest.mark.parametrize("ms", [2**62 + 1, 2**64 - 1])
def test_an_id_beyond_all_times(ms: int) -> None:
    with pytest.raises(ChunkRejected) as rejected:
        parse(b"%d-0" % ms, GOOD, AUDIO)
    assert rejected.value.reason == "bad_id"


def test_no_samples_are_a_chunk() -> None:
    assert parse(b"1-0", {**GOOD, b"data": b""}, AUDIO).data == b""


@given(
    st.dictionaries(
        st.one_of(st.sampled_from([b"stream", b"seq", b"data", b"end"]), st.binary(max_size=5)),
        st.one_of(st.binary(max_size=40), st.integers(-5, 2**70).map(lambda n: str(n).encode())),
        max_size=6,
    )
)
def test_any_entry_is_a_chunk_or_rejected(fields: dict[bytes, bytes]) -> None:
    try:
        chunk = parse(b"1-0", fields, SENSOR)
    except ChunkRejected:
        return
    assert chunk.data == fields[b"data"]


def test_an_entry_of_a_hundred_thousand_fields_costs_little() -> None:
    fields = {b"%d" % n + b"x" * 100: b"" for n in range(100_000)}
    began_s = time.process_time()
    with pytest.raises(ChunkRejected, match="and 99995 more") as rejected:
        parse(b"1-0", {**GOOD, **fields}, AUDIO)
    assert time.process_time() - began_s < 1
    assert len(str(rejected.value)) < 500


@pytest.mark.parametrize("name", ["stream", "seq", "data"])
def test_a_field_twice_in_the_length_of_a_plain_entry(name: str) -> None:
    """Six parts, as most entries have, and yet none of them."""
    others = [part for part in (b"stream", b"seq", b"data") if part != name.encode()]
    entry = [name.encode(), GOOD[name.encode()], others[0], GOOD[others[0]], name.encode(), b"other"]
    with pytest.raises(ChunkRejected, match=rf"fields {name} \(field 3\)"):
        ChunkParser(AUDIO, partition=0, partitions=1)(b"1-0", entry)


@given(st.permutations(list(GOOD.items())))
def test_the_order_of_fields_says_nothing(items: list[tuple[bytes, bytes]]) -> None:
    chunk, other = parse(b"5-1", dict(items), AUDIO), parse(b"5-1", GOOD, AUDIO)
    assert (chunk.stream, chunk.seq, chunk.data) == (other.stream, other.seq, other.data)
    assert (chunk.end, chunk.begin, chunk.given) == (other.end, other.begin, other.given) == (False, False, None)


@pytest.mark.parametrize("name", ["stream", "seq", "data", "end"])
@pytest.mark.parametrize("first", [True, False])
def test_a_field_that_stands_twice(name: str, first: bool) -> None:
    """As read off the wire: neither of the two is chosen, both are kept for whoever looks."""
    once, twice = flat({**GOOD, b"end": b"1"}), [name.encode(), b"other"]
    entry = twice + once if first else once + twice
    assert len(fields_of(entry)) == 5
    with pytest.raises(ChunkRejected, match=rf"fields {name} \(field \d\)") as rejected:
        ChunkParser(AUDIO, partition=0, partitions=1)(b"1-0", entry)
    assert rejected.value.reason == "unknown_field"


def test_a_hostile_entry_makes_no_long_log_line() -> None:
    task = Task(0, 1, AUDIO, Policy())
    task.take([(b"1-0", flat({b"stream": b"x" * 10_000_000, b"seq": b"y" * 1_000_000, b"z" * 1_000_000: b""}))])
    (told,) = task.happenings()
    assert told.kind == "rejected"
    assert len(repr(told)) < 1000
