"""Regular files, which can be read from end to end: why a path is none, in words for whoever named it."""

from __future__ import annotations

import stat
from pathlib import Path


def why_none(path: Path) -> str | None:
    """What a path is instead of a regular file, or a link to one; None: it is one.

    >>> why_none(Path("/dev/null")), why_none(Path("/nowhere"))
    ('not a file, but a device', 'no such file')
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if stat.S_ISREG(mode) else f"not a file, but a {kind(mode)}"


def kind(mode: int) -> str:
    """What has this mode, if it is no regular file."""
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
