"""The embedded server's memory allocator: mimalloc, where its wheel is installed.

The wheel's server is built with the C library's, which is slow for what a log consists of, pieces of a few KB: a
quarter of the server's time. Redis and Valkey as they are packaged elsewhere mostly have jemalloc inside, and are left
alone.
"""

from __future__ import annotations

from importlib import metadata

_WHEEL, _LIBRARY = "cmeel-mimalloc", "libmimalloc.so"


def library() -> str:
    """What LD_PRELOAD is to be for the server; nothing, where there is no such wheel."""
    try:
        files = metadata.files(_WHEEL) or ()
    except metadata.PackageNotFoundError:
        return ""
    found = next((str(file.locate()) for file in files if file.name == _LIBRARY), "")
    return "" if set(found) & set(": $") else found  # which mean something in LD_PRELOAD
