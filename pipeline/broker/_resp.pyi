def pack(commands: list[tuple[object, ...]]) -> bytes:
    """Commands of bytes, text, whole numbers, views, and dictionaries of these, to what Redis reads.

    Raises TypeError, OverflowError, UnicodeEncodeError, BufferError: an argument is none of these, or does not fit.
    """
