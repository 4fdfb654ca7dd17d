def pack(commands: list[tuple[object, ...]]) -> bytes:
    """Commands of bytes, text, whole numbers and buffers to what Redis reads.

    Raises TypeError, OverflowError, UnicodeEncodeError, BufferError: an argument is none of these, or does not fit.
    """
