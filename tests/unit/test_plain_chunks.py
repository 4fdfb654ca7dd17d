"""The short way of an entry, by compiled code, against the long one, which knows all rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.broker.keys import partition_of
from pipeline.chunk import COMPILED, Chunk, ChunkParser
from pipeline.manifest import InputSpec

AUDIO = InputSpec(sample_rate_hz=8000)
SENSOR = InputSpec(sample_rate_hz=50, channels=3, sample_type="float32")
NAN = np.array([1, 2, np.nan], "<f4").tobytes()
INF = np.array([1, -np.inf, 2], "<f4").tobytes()
LARGE = np.array([np.finfo("f4").max, -np.finfo("f4").max, np.finfo("f4").tiny / 4], "<f4").tobytes()

compiled = pytest.mark.skipif(not COMPILED, reason="not compiled where this was installed")


NAMES = [
    b"", b"a{b", b"a}b", b"a\x7f", b"\x1f", b"a\x00b",
    b"x" * 200, b"x" * 201, "größe".encode(), "通話".encode(), b"\xff",
]  # fmt: skip
NUMBERS = [
    b"", b"-1", b"+1", b" 1", b"1 ", b"007", b"1_0", b"1.0", "٣".encode(),
    b"%d" % 2**62, b"%d" % (2**62 + 1), b"%d" % 2**63, b"9" * 19, b"9" * 20, b"0" * 19,
]  # fmt: skip
DATA = [b"x", b"xyz", bytes(60), bytes(72), NAN, INF, LARGE]
IDS = [b"%d-0" % 2**62, b"%d-0" % (2**62 + 1), b"%d-0" % (2**64 - 1), b"0-1"]


def mostly(usual: st.SearchStrategy[bytes], *odd: bytes) -> st.SearchStrategy[bytes]:
    """Nearly always the usual, now and then something odd."""
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(odd) if n == 0 else usual)


names = mostly(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1).map(str.encode), *NAMES)
numbers = mostly(st.integers(0, 2**62).map(lambda n: b"%d" % n), *NUMBERS)
data = mostly(st.integers(0, 4).flatmap(lambda n: st.binary(min_size=12 * n, max_size=12 * n)), *DATA)
ids = mostly(st.tuples(st.integers(0, 2**62), st.integers(0, 2**64 - 1)).map(lambda id_: b"%d-%d" % id_), *IDS)


@st.composite
def entries(draw: st.DrawFn) -> list[object]:
    fields = [
        draw(mostly(st.just(name), b"end", b"", b"begin", b"given", b"se", b"Seq"))
        for name in (b"stream", b"seq", b"data")
    ]
    flat = [fields[0], draw(names), fields[1], draw(numbers), fields[2], draw(data)]
    kind = draw(st.integers(0, 9))
    if kind == 0:
        flat += [b"end", draw(st.sampled_from([b"0", b"1", b"2"]))]
    elif kind == 1:
        flat = flat[2:] + flat[:2]
    elif kind == 2:
        flat = flat[: draw(st.sampled_from([0, 2, 4]))]
    return [draw(ids), flat]


def same(found: list[list[object]], spec: InputSpec, partitions: int = 1) -> None:
    short, long = (
        ChunkParser(spec, partition=0, partitions=partitions, max_chunk_bytes=60, compiled=how) for how in (True, False)
    )
    one, other = short.all(found), long.all(found)  # type: ignore[arg-type]
    assert (one.chunks, one.rejections) == (other.chunks, other.rejections)
    assert 0 <= other.size_bytes - one.size_bytes <= 250 * len(found)


@compiled
@pytest.mark.parametrize("spec", [AUDIO, SENSOR])
def test_both_ways_find_the_same_of_what_is_odd_in_one_thing(spec: InputSpec) -> None:
    usual = [b"5-1", b"s", b"7", bytes(12)]
    for at, odd in enumerate([IDS, NAMES, NUMBERS, DATA]):
        for value in odd:
            id_, name, number, data = [*usual[:at], value, *usual[at + 1 :]]
            same([[id_, [b"stream", name, b"seq", number, b"data", data]]], spec)


@compiled
@settings(max_examples=400)
@given(st.lists(entries(), max_size=8), st.sampled_from([AUDIO, SENSOR]), st.sampled_from([1, 3]))
def test_both_ways_find_the_same(found: list[list[object]], spec: InputSpec, partitions: int) -> None:
    same(found, spec, partitions)


@compiled
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="{}"), min_size=1, max_size=200))
def test_a_plain_entry_goes_the_short_way(stream: str) -> None:
    """Else the test above would hold the long way against itself. A name's partition is zlib's sum of it."""
    parser = ChunkParser(AUDIO, partition=partition_of(stream, 16), partitions=16)
    found = [[b"5-1", [b"stream", stream.encode(), b"seq", b"7", b"data", b"\x01\x00"]]]
    (parts,), odd, size_bytes = parser._plain(found)  # type: ignore[arg-type]
    assert parts is not None
    assert (odd, size_bytes) == (0, 2)
    assert Chunk(*parts) == Chunk(b"5-1", 5, stream, 7, b"\x01\x00")


NO_ENTRIES: list[object] = [
    None, [], [b"1-0"], [b"1-0", None], [None, []], (b"1-0", ()), [b"1-0", [b"stream"]], [b"1-0", [None] * 6],
    [1, [b"stream", 1, b"seq", 2, b"data", 3]], [b"1-0", None, None],
]  # fmt: skip


@compiled
@pytest.mark.parametrize("entry", NO_ENTRIES)
def test_what_is_no_entry_is_left_alone(entry: object) -> None:
    assert ChunkParser(AUDIO, partition=0, partitions=1)._plain([entry]) == ([None], 1, 0)  # type: ignore[list-item]


def test_samples_lie_end_to_end() -> None:
    signals = [np.arange(n, dtype="<f4").reshape(-1, 3) for n in (6, 0, 3)]
    parser = ChunkParser(SENSOR, partition=0, partitions=1)
    samples, sizes = parser.joined([Chunk(b"1-0", 1, "s", n, x.tobytes()) for n, x in enumerate(signals)])
    assert samples.tolist() == np.concatenate(signals).tolist()
    assert sizes.tolist() == [2, 0, 1]
