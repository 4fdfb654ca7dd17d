"""Files that commands write: never one that they read, and a new one takes the old one's place once it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from pipeline.errors import ConfigError


def identity(path: Path) -> object:
    """Which file a path means: equal for all its names, links of either kind among them.

    >>> identity(Path("/tmp/../tmp")) == identity(Path("/tmp"))
    True
    """
    try:
        about = path.stat()
    except OSError:
        return os.path.realpath(path)
    return about.st_dev, about.st_ino


def check_spared(flag: str, path: Path, what: str, read: Iterable[Path]) -> None:
    """Raises ConfigError when writing to `path` would destroy a file that is read; `what` it is."""
    mine = identity(path)
    for each in read:
        if identity(each) == mine:
            raise ConfigError(f"{flag} {path}: would overwrite the {what} {each}; name another place")


class NewFile:
    """A file that is to be `path`: what lies there stays until `keep`; without it, nothing is left behind.

    What is no regular file (a device, a pipe) cannot be replaced by one: it is written itself.

    Attributes:
        at: where to write.
    """

    def __init__(self, path: Path) -> None:
        self._target = Path(os.path.realpath(path))  # of a link, the file that it stands for
        there = os.path.exists(self._target) and not os.path.isfile(self._target)
        self.at = self._target
        if not there:
            self.at = self._target.with_name(f".{self._target.name}.{os.getpid()}.partial")

    def keep(self) -> None:
        """It is whole. Raises OSError."""
        if self.at != self._target:
            if self._target.exists():
                shutil.copymode(self._target, self.at)
            os.replace(self.at, self._target)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.at != self._target and os.path.exists(self.at):
            self.at.unlink()
