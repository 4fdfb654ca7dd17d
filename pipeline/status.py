"""What a worker says of itself to probes on its machine: a small file, rewritten every second.

A file, not Redis: whether a process lives must not depend on whether Redis does. Two questions:

    alive   it went through its loop not long ago
    ready   it is alive, owns what it should, and its lag is falling (or no more than three reads)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from pipeline.errors import ConfigError

EVERY_S = 1.0
_WINDOW_S = 10.0


def default_folder() -> Path:
    """Where workers of this user tell it, unless set otherwise."""
    return Path(tempfile.gettempdir()) / f"statebelt-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Status:
    """One worker process. `at_s` is when it last went through its loop, in seconds since 1970; `born` tells it from
    another process that has its number now."""

    pid: int
    born: int
    owner: str
    topic: str
    group: str
    at_s: float
    stale_s: float
    phase: str
    owned: int
    share: int
    lag: int
    ready: bool
    why: str


class Reporter:
    """Writes a worker's status.

    Args:
        folder: made if it is not there; it must be this user's own.
        url: of the server: a topic of another server is another topic.
        lease_ms: a worker that was silent for so long has lost its partitions: it counts as dead.
        read_entries: a lag of three reads is what a worker has on its way, is working on, and has in hand.
    """

    def __init__(
        self, folder: Path, url: str, owner: str, topic: str, group: str, *, lease_ms: int, read_entries: int
    ) -> None:
        pid = os.getpid()
        self.path = folder / f"{_name(url, topic, group)}{pid}.json"
        self.error = ""
        self._about = {"pid": pid, "born": _born(pid), "owner": owner, "topic": topic, "group": group}
        self._stale_s = max(3 * EVERY_S, lease_ms / 1000)
        self._read_entries = read_entries
        self._lags: deque[tuple[float, int]] = deque()
        self._next_s = 0.0

    def due(self) -> bool:
        """Is it time to tell again?"""
        return time.monotonic() >= self._next_s

    def tell(self, phase: str, owned: int = 0, share: int = 0, lag: int = 0, trouble: str = "") -> None:
        """Write. What cannot be written is kept in `error`: a probe must not stop the work."""
        now = time.monotonic()
        self._next_s = now + EVERY_S
        self._lags.append((now, lag))
        while now - self._lags[0][0] > _WINDOW_S:
            self._lags.popleft()
        why = trouble or self._fault(phase, owned, share, lag)
        status = Status(
            **self._about,  # type: ignore[arg-type]
            at_s=time.time(),
            stale_s=self._stale_s,
            phase=phase,
            owned=owned,
            share=share,
            lag=lag,
            ready=not why,
            why=why,
        )
        try:
            _own_folder(self.path.parent)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(asdict(status)))
            partial.replace(self.path)
            self.error = ""
        except (OSError, ConfigError) as error:
            self.error = str(error)

    def clear(self) -> None:
        """The worker ends: take the file away."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _fault(self, phase: str, owned: int, share: int, lag: int) -> str:
        if phase != "running":
            return f"it is {phase}"
        if owned < share:
            return f"it owns {owned} of its share of {share} partitions"
        if lag > 3 * self._read_entries and lag >= self._lags[0][1]:
            return f"its lag does not fall: {self._lags[0][1]} chunks {_WINDOW_S:g} s ago, {lag} now"
        return ""


def _name(url: str, topic: str, group: str) -> str:
    server = hashlib.sha256(url.encode()).hexdigest()[:8]  # it may hold a password
    return f"{quote(topic, safe='')}:{quote(group, safe='')}:{server}:"


def _born(pid: int) -> int | None:
    """When a process was started, in the kernel's ticks; None if there is none, 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # somebody else's
    return 0


def _own_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # another user's, in a folder that all may write to
        raise ConfigError(f"{folder} belongs to another user; set STATEBELT_STATUS_DIR")


def read(folder: Path, url: str, topic: str, group: str) -> list[Status]:
    """The workers of a group on this machine that live. What dead ones left is taken away."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            status = Status(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # just taken away, or of another version
            continue
        if _born(status.pid) != status.born:
            path.unlink(missing_ok=True)  # it was killed
        elif path.name.startswith(_name(url, topic, group)):
            found.append(status)
    return found


def faults(statuses: Sequence[Status], live: bool = False) -> list[str]:
    """What keeps these workers from being ready (or alive only); empty: nothing does."""
    now, found = time.time(), []
    for status in statuses:
        silent_s = now - status.at_s
        if silent_s > status.stale_s:
            found.append(f"worker {status.pid}: silent for {silent_s:.0f} s")
        elif not live and not status.ready:
            found.append(f"worker {status.pid}: {status.why}")
    return found
