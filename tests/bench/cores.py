"""Who runs on which core. What is measured has one of its own; what only feeds and watches it shares the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cores:
    """A core each, as far as there are any. `second` is the second worker's, where two are measured."""

    worker: int
    server: int
    producer: int
    reader: int
    second: int

    def __str__(self) -> str:
        return (
            f"what is measured on core {self.worker}; server on {self.server}, producer on {self.producer}, "
            f"reader on {self.reader}; a second worker on {self.second}"
        )


def plan(available: list[int]) -> Cores:
    """With one core all share it; with two the worker has one, all others the other.

    >>> plan([0, 1])
    Cores(worker=0, server=1, producer=1, reader=1, second=1)
    >>> plan([0, 1, 2, 3])
    Cores(worker=0, server=1, producer=2, reader=2, second=3)
    """
    last = len(available) - 1
    worker, server, producer, second = (available[min(n, last)] for n in range(4))
    return Cores(worker, server, producer, producer, second if last >= 2 else server)


CORES = plan(sorted(os.sched_getaffinity(0)))


@contextmanager
def on(core: int) -> Iterator[None]:
    """This thread, and every process that it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def busy_s(core: int) -> float:
    """Seconds that a core has worked since the machine started, for whomever."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _wait, *rest = (int(word) for word in line.split()[1:])
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")
