"""What strangers wrote, and large numbers, as a person can read them. Nothing shown here can steer a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

_LONGEST = 200


def text(raw: bytes) -> str:
    """Bytes as text; those that are no UTF-8 as escapes.

    >>> text(b"caf\\xc3\\xa9 \\xff")
    'café \\\\xff'
    """
    return raw.decode("utf-8", "backslashreplace")


def printable(raw: bytes | str, longest: int = _LONGEST) -> str:
    """One line of text, every control, invisible or direction character escaped, at most `longest` of them shown.

    >>> printable(b"\\x1b[31mred")
    '\\\\x1b[31mred'
    """
    whole = text(raw) if isinstance(raw, bytes) else raw
    return escaped(whole[:longest]) + "..." * (len(whole) > longest)


def escaped(line: str) -> str:
    """The same text, every control, invisible or direction character of it escaped.

    >>> escaped("a\\x00b")
    'a\\\\x00b'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def hex_dump(data: bytes) -> Iterator[str]:
    """Lines of sixteen bytes: where, the bytes, and those that are ASCII letters.

    >>> list(hex_dump(b"one\\n"))
    ['00000000  6f 6e 65 0a                                       |one.|']
    """
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        left, right = row[:8].hex(" "), row[8:].hex(" ")
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{start:08x}  {left:<23}  {right:<23}  |{letters}|"


def duration(ms: float) -> str:
    """About how long.

    >>> duration(900), duration(90_000), duration(5_400_000), duration(200_000_000)
    ('0.9 s', '90 s', '90 min', '56 h')
    """
    seconds = ms / 1000
    for unit_s, name, up_to in ((1, "s", 120), (60, "min", 120), (3600, "h", 72)):
        if seconds < unit_s * up_to:
            return f"{seconds / unit_s:.{1 if seconds < 10 else 0}f} {name}"
    return f"{seconds / 86400:.0f} d"


def counted(number: int, what: str) -> str:
    """How many of what.

    >>> counted(1, "stream"), counted(2000, "stream")
    ('1 stream', '2,000 streams')
    """
    return f"{number:,} {what}{'s' * (number != 1)}"


def emit_escaped(record: object) -> None:
    """One line of JSON in pure ASCII: `console.emit` shows names as they are, and these are anybody's."""
    sys.stdout.write(json.dumps(record, separators=(",", ":")) + "\n")
    sys.stdout.flush()
