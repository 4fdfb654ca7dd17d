"""Commands to bytes, by compiled code where it was built, else by hiredis; the bytes are the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import hiredis
import redis

try:
    from pipeline.broker import _resp
except ImportError:  # no compiler, where this was installed
    _resp = None  # type: ignore[assignment]

COMPILED = _resp is not None

Value = str | bytes | memoryview | int
Word = Value | dict[bytes, bytes]
"""A dictionary stands for its names and values in turns: the fields of an entry."""

Command = Sequence[Word]


def pack(commands: Sequence[Command], *, compiled: bool = COMPILED) -> bytes:
    """The commands of one round trip, one behind the other.

    >>> pack([("XLEN", "log"), ("GET", b"x")])
    b'*2\\r\\n$4\\r\\nXLEN\\r\\n$3\\r\\nlog\\r\\n*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nx\\r\\n'

    Raises redis.DataError: an argument is neither bytes, text nor a whole number of 64 bits, nor a dictionary of these.
    """
    try:
        if compiled:
            return _resp.pack([*map(tuple, commands)])
        return b"".join([hiredis.pack_command(tuple(_words(command))) for command in commands])  # type: ignore[arg-type]
    except (TypeError, OverflowError, UnicodeEncodeError, BufferError) as error:
        name = commands[0][0] if commands and commands[0] else ""
        raise redis.DataError(f"an argument of {name!r} is neither bytes, text nor a number: {error}") from error


def _words(command: Command) -> Iterator[Value]:
    for argument in command:
        if type(argument) is dict:  # as the compiled code has it
            for pair in argument.items():
                yield from pair
        else:
            yield argument  # type: ignore[misc]
