"""`statebelt worker --procs N`: a parent that keeps N worker processes alive, and nothing more.

The children are ordinary workers: they share partitions among themselves and with workers elsewhere by leases alone.
The parent owns nothing: if it is killed, the kernel tells its children (PR_SET_PDEATHSIG), which then drain and end.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.logs import logger

_BACKOFF_S = (0.5, 10.0)
_SOUND_S = 30.0
"""A process that lived for so long is started again at once."""

_LOOK_S = 0.05


@dataclass
class _Child:
    number: int
    process: subprocess.Popen[bytes]
    began_s: float
    failures: int = 0
    again_s: float = 0.0


@dataclass
class Crew:
    """N worker processes.

    Args:
        count: how many.
        environment: settings of the children, as STATEBELT_* variables.
        grace_s: how long they may take to end; then they are killed, which loses nothing.
    """

    count: int
    environment: Mapping[str, str]
    grace_s: float
    _stopping: bool = False
    _children: list[_Child] = field(default_factory=list)

    def stop(self) -> None:
        """Ask `run` to end. Safe in a signal handler."""
        self._stopping = True

    def run(self) -> int:
        """Start them, start again who dies, until `stop`. Returns an exit status: 0, or that of children that refuse
        to start."""
        log = logger()
        self._children = [_Child(n, self._start(), time.monotonic()) for n in range(self.count)]
        log.info("crew_started", pids=[child.process.pid for child in self._children])
        try:
            while not self._stopping:
                for child in self._children:
                    status = child.process.poll()
                    now = time.monotonic()
                    if status is None:
                        continue
                    if child.again_s == 0.0:
                        if status == 2 and child.failures == 0 and now - child.began_s < _SOUND_S:
                            return status  # it refuses to start, and said why; another would refuse as well
                        child.failures = 0 if now - child.began_s > _SOUND_S else child.failures + 1
                        first, last = _BACKOFF_S
                        wait_s = min(last, first * 2.0 ** min(child.failures - 1, 10)) if child.failures else 0.0
                        child.again_s = now + wait_s
                        log.warning("worker_died", pid=child.process.pid, status=status, again_in_s=wait_s)
                    if now >= child.again_s:
                        child.process, child.began_s, child.again_s = self._start(), now, 0.0
                        log.info("worker_started_again", pid=child.process.pid)
                time.sleep(_LOOK_S)
            return 0
        finally:
            self._end()
            log.info("crew_stopped")

    def _start(self) -> subprocess.Popen[bytes]:
        parent = os.getpid()

        def bound() -> None:
            ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:  # it died before we could ask
                os._exit(1)

        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "worker"],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which tells them once
            preexec_fn=bound if sys.platform == "linux" else None,
        )

    def _end(self) -> None:
        alive = [child.process for child in self._children if child.process.poll() is None]
        for process in alive:
            process.terminate()
        until_s = time.monotonic() + self.grace_s
        for process in alive:
            try:
                process.wait(max(0.0, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
