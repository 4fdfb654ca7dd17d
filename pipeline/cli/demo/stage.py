"""The demo's processes: a server and a worker, of which nothing is left afterwards, however it ends.

When this process unwinds (done, failed, Ctrl-C, SIGTERM) they are stopped in order and their folder is removed.
When it is killed outright, the kernel tells them (PR_SET_PDEATHSIG): the worker dies at once, the server cleanly.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from pipeline.broker.admin import drop_group
from pipeline.broker.connection import check_server, connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys, meta_key, stand_key
from pipeline.cli import interrupt
from pipeline.cli.reach import reach
from pipeline.errors import StatebeltError
from pipeline.settings import load_settings

_POLL_S = 0.01
_STOP_S = 5.0
_LOG_TAIL_LINES = 15
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# No code of ours runs between fork and exec. If the parent died before the signal was set, nobody would send it.
_LAUNCH = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL: a worker may die at any moment
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
del sys.argv[1]
from pipeline.cli import main
main()
"""


class DemoFailed(StatebeltError):
    """A process of the demo did not do its part."""


@dataclass(frozen=True)
class Stage:
    """A server and a worker that run."""

    url: str
    server: str
    topic: str
    group: str
    partitions: int
    worker: subprocess.Popen[bytes]
    log: Path
    server_pid: int | None
    asked_to_end: Callable[[], None]

    def await_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the worker owns every partition. Raises DemoFailed."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self.check()
            if any(len(line.get("owned", [])) == self.partitions for line in self._events("ready")):
                return
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"the worker was not ready after {timeout_s:.0f} s; its log:\n{self.log_tail()}")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raises DemoFailed if the worker has gone, KeyboardInterrupt or SystemExit if a signal asked us to end."""
        self.asked_to_end()
        status = self.worker.poll()
        if status is not None:
            raise DemoFailed(f"the worker ended with status {status}; its log:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of the worker's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]) or "(empty)"

    def worker_cpu_s(self) -> float | None:
        """CPU seconds that the worker has used, all threads; None where the system does not say."""
        try:
            threads = Path(f"/proc/{self.worker.pid}/task").iterdir()
            return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
        except (OSError, ValueError, IndexError):
            return None

    def _events(self, name: str) -> Iterator[dict[str, list[int]]]:
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record.get("event") == name:
                    yield record


@contextmanager
def stage(bundle: str, url: str | None, *, partitions: int = 4) -> Iterator[Stage]:
    """Server and worker, until the block is left. With `url` that server is used, and left as it was found."""
    topic, group = f"demo-{os.getpid()}-{time.time_ns() // 1_000_000}", "demo"
    with _unwinding() as (asked_to_end, calm), ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="statebelt-demo-", ignore_cleanup_errors=True)))
        pid = None
        if url is None:
            embedded = stack.enter_context(EmbeddedServer(folder / "redis"))
            url, pid = embedded.url, embedded.pid
        else:
            reach(load_settings(url=url))
            stack.callback(_sweep, url, topic, group, partitions)
        with closing(connect(url)) as client:
            server = check_server(client)
        log = folder / "worker.log"
        worker = _spawn(bundle, topic, group, url, partitions, log)
        stack.callback(_stop, worker)
        stack.callback(calm)
        yield Stage(url, server, topic, group, partitions, worker, log, pid, asked_to_end)


@contextmanager
def _unwinding() -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """SIGTERM and SIGHUP unwind as Ctrl-C does.

    Yields a function that unwinds if a signal came, and one after which no signal disturbs the unwinding. The first is
    needed because Python drops what a handler raises while a finaliser runs.
    """
    came: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        if number not in came:
            came.append(number)
        if not interrupt.waits(number, frame):
            asked_to_end()

    def asked_to_end() -> None:
        if came:
            raise KeyboardInterrupt if came[0] == signal.SIGINT else SystemExit(128 + came[0])

    def calm() -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, leave)
    try:
        interrupt.check()
        yield asked_to_end, calm
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _spawn(bundle: str, topic: str, group: str, url: str, partitions: int, log: Path) -> subprocess.Popen[bytes]:
    flags = {
        "--bundle": bundle,
        "--topic": topic,
        "--group": group,
        "--url": url,
        "--partitions": str(partitions),
        "--publish": "chunks",  # every chunk gets a result, so that every chunk's latency is measured
        "--log-format": "json",
        "--log-level": "info",
    }
    command = [sys.executable, "-c", _LAUNCH, str(os.getpid()), "worker"]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, *(part for pair in flags.items() for part in pair)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is for us: we stop the worker first, then its server
        )


def _stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _sweep(url: str, topic: str, group: str, partitions: int) -> None:
    """Leave somebody's server as it was found."""
    with contextlib.suppress(StatebeltError), closing(connect(url)) as client:
        drop_group(client, topic, group, partitions)
        for partition in range(partitions):
            keys = Keys(topic, group, partition)
            client.unlink(
                keys.log, keys.epoch, *client.scan_iter(match=f"{stand_key(topic, partition, '')}*", count=1000)
            )
        client.unlink(meta_key(topic))
