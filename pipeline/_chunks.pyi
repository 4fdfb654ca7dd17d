from collections.abc import Sequence
from typing import Any

def parse(
    entries: Sequence[Any],
    partition: int,
    partitions: int,
    max_name: int,
    sample_bytes: int,
    max_bytes: int,
    floats: bool,
) -> tuple[list[tuple[bytes, int, str, int, bytes] | None], int, int]:
    """Of each entry id, ms, stream, seq and data; None of one that has other fields, a name beyond ASCII, or a fault.
    How many are None, and how many bytes the data of the others are.

    Raises TypeError: no list. ValueError: no partition, or samples of no bytes.
    """
