"""Entries of a log, as the wire has them and as they are easier to use."""

from __future__ import annotations

from collections.abc import Sequence

Raw = tuple[bytes, Sequence[bytes]]
"""An entry as read: its id, and its fields' names and values in turns (hiredis makes lists of both)."""

Entry = tuple[bytes, dict[bytes, bytes]]
"""An entry: its id, and its fields."""


def fields_of(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Names and values in turns to fields. One that stands twice is kept twice, told apart.

    Of two `seq` a dictionary would keep one, and which one is not ours to choose. So both are kept, and the second has
    a name that nobody knows: whoever reads the entry rejects it, and its dead letter shows what was pushed.

    >>> fields_of([b"seq", b"1", b"seq", b"2"])
    {b'seq': b'1', b'seq (field 2)': b'2'}
    """
    each = iter(flat)
    fields = dict(zip(each, each, strict=True))
    if 2 * len(fields) == len(flat):
        return fields
    fields = {}
    for n, (name, value) in enumerate(zip(flat[::2], flat[1::2], strict=True), start=1):
        fields[b"%s (field %d)" % (name, n) if name in fields else name] = value
    return fields
