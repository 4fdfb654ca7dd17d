"""What a worker, which does the same thing for weeks, asks of its process's memory."""

from __future__ import annotations

import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 64 << 20
_MAPPED_BYTES = 16 << 20
_NEW_OBJECTS = 50_000


def keep_freed() -> bool:
    """Let malloc keep what a batch frees, up to 64 MiB, for the next one. Returns whether this C library can be told.

    glibc gives the top of its heap back to the kernel as soon as 128 KiB of it are free, and the next batch faults the
    same pages in again: three a chunk, 8 us.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library than glibc
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)) and bool(mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES))


def collect_seldom() -> None:
    """Look for cycles after 50,000 new containers instead of 700: a batch makes thousands, and no cycle among them.

    What is there when a worker starts (modules, the bundle) is not looked at again. It was 4 % of a chunk.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
