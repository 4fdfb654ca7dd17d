"""One server at a time on a data directory, even while a dead parent's server is still shutting down."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from pipeline.errors import ConfigError

_SHUTDOWN_S = 20.0  # how long a server whose parent died may take to leave
_POLL_S = 0.01


class DataDirLock:
    """An flock on `<data_dir>/lock`, which also names who holds it: `<pid of the supervisor> <pid of the server>`.

    The server inherits the open file, so the lock lasts until supervisor and server are both gone.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "lock"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock. Waits only for a server whose supervisor is dead, which is about to go.

        Raises:
            ConfigError: a living process uses the directory.
        """
        if self._fd is not None:
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline_s = time.monotonic() + _SHUTDOWN_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holders = _pids(os.pread(fd, 64, 0))
                leaving = len(holders) == 2 and not _alive(holders[0])
                if leaving and time.monotonic() < deadline_s:
                    time.sleep(_POLL_S)
                    continue
                os.close(fd)
                pids = " (its server: ".join(map(str, holders)) + ")" * (len(holders) - 1)
                raise ConfigError(
                    f"{self._path.parent} is in use by process {pids or 'unknown'}: use that server, stop it, "
                    f"or choose another data directory"
                ) from None
            break
        self._fd = fd
        self.write_pids()

    def write_pids(self, server: int | None = None) -> None:
        """Note who holds the lock, for the message to whom it is refused."""
        text = f"{os.getpid()} {server}" if server else f"{os.getpid()}"
        os.ftruncate(self.fileno(), 0)
        os.pwrite(self.fileno(), f"{text}\n".encode(), 0)

    def fileno(self) -> int:
        """The descriptor to pass to the server."""
        if self._fd is None:
            raise ConfigError(f"{self._path} is not locked by this process")
        return self._fd

    def release(self) -> None:
        """Give the lock up; it is free once the server is gone too."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _pids(text: bytes) -> list[int]:
    return [int(word) for word in text.split() if word.isdigit()]


def _alive(pid: int) -> bool:
    # A killed process that nobody has collected yet still has its pid.
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X"):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
