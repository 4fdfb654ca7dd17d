"""Commands to bytes: compiled code and hiredis write the same, and hiredis's reader understands it."""

from __future__ import annotations

import array
from collections.abc import Sequence

import hiredis
import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from pipeline.broker.resp import COMPILED, Command, pack

both = pytest.mark.parametrize(
    "compiled",
    [False, pytest.param(True, marks=pytest.mark.skipif(not COMPILED, reason="not compiled where this was installed"))],
)

arguments = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=60).filter(lambda text: text.isprintable()),
    st.integers(-(2**63), 2**63 - 1),
    st.binary(max_size=300).map(memoryview),
    st.binary(max_size=64).map(lambda data: memoryview(array.array("h", data + data))),  # its length is not its size
)
fields = st.dictionaries(
    st.binary(max_size=9), st.one_of(st.binary(max_size=99), st.binary(max_size=9).map(memoryview))
)
words = st.one_of(arguments, fields)
commands = st.lists(st.tuples(arguments, st.lists(words, max_size=12)).map(lambda c: (c[0], *c[1])), max_size=6)


def by_the_book(commands: Sequence[Command]) -> bytes:
    """What the protocol's description says ("Sending commands to a Redis server"), word by word."""
    out = b""
    for command in commands:
        said: list[object] = []
        for word in command:
            said += [part for pair in word.items() for part in pair] if isinstance(word, dict) else [word]
        out += b"*" + str(len(said)).encode() + b"\r\n"
        for argument in said:
            data = bytes(argument) if isinstance(argument, bytes | memoryview) else str(argument).encode()
            out += b"$" + str(len(data)).encode() + b"\r\n" + data + b"\r\n"
    return out


@both
@given(said=commands)
def test_commands_are_packed_as_the_protocol_wants(compiled: bool, said: list[Command]) -> None:
    packed = pack(said, compiled=compiled)
    assert packed == by_the_book(said)
    reader = hiredis.Reader()
    reader.feed(packed)
    for command in said:
        assert len(reader.gets()) == sum(2 * len(word) if isinstance(word, dict) else 1 for word in command)


@both
@pytest.mark.parametrize("wrong", [None, 2.5j, ["a"], object(), "\ud800", True, np.int64(5), {b"a": None}, {2j: b""}])
def test_what_is_no_argument_is_refused(compiled: bool, wrong: object) -> None:
    with pytest.raises(redis.DataError, match="'SET' is neither bytes, text nor a number"):
        pack([("SET", "key", wrong)], compiled=compiled)  # type: ignore[list-item]


@pytest.mark.skipif(not COMPILED, reason="not compiled where this was installed")
def test_a_view_with_gaps_is_refused() -> None:
    """hiredis writes the bytes in the gaps; nobody here makes such views."""
    with pytest.raises(redis.DataError, match="neither bytes"):
        pack([("SET", "key", memoryview(bytes(8))[::2])])


@both
def test_a_number_beyond_64_bits_is_refused_or_written_whole(compiled: bool) -> None:
    try:
        assert pack([("SET", 2**80)], compiled=compiled) == by_the_book([("SET", 2**80)])
    except redis.DataError:
        assert compiled


@pytest.mark.skipif(not COMPILED, reason="not compiled where this was installed")
@pytest.mark.parametrize("wrong", [(), None, [["GET", "x"]], [("GET",), None], ["GET"]])
def test_compiled_code_takes_a_list_of_tuples(wrong: object) -> None:
    from pipeline.broker import _resp

    with pytest.raises(TypeError, match="a list of tuples"):
        _resp.pack(wrong)  # type: ignore[arg-type]
