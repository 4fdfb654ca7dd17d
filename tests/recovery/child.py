"""Real workers with something done to them, in processes of their own that start quickly.

The product has no hooks. A child is `statebelt worker`, run in a fork of a clean server process that has imported
everything, and before it runs, functions of the product are replaced in it. They are found by what they are (the
function that a room offers), and replaced in whichever module imported them.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.broker.functions import call_many
from tests.harness import until

Change = Callable[[], None]
"""What is done to a child before it works. A picklable callable."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.recovery.child", "pipeline.worker", "pipeline.cli.app", "pipeline.cli.worker"])


def replace(place: str, make: Callable[[Any], Any]) -> None:
    """Put `make(original)` in the stead of `module:function` or `module:Class.method`, wherever it was imported."""
    module_name, _, name = place.partition(":")
    importlib.import_module("pipeline.worker")
    home: Any = importlib.import_module(module_name)
    *outer, last = name.split(".")
    for part in outer:
        home = getattr(home, part)
    original = getattr(home, last)
    made = make(original)
    setattr(home, last, made)
    if not outer:
        for module in [m for n, m in sys.modules.items() if n.startswith("pipeline")]:
            for attribute in [a for a, value in vars(module).items() if value is original]:
                setattr(module, attribute, made)


@dataclass(frozen=True)
class Point:
    """A place in the way of a worker at which it ends or stops, by its own hand, at its `nth` pass.

    place: as for `replace`. when: `before` the call, `after` it (it took effect, nobody heard of it), or `between`
    two of several calls to the server that are sent together, the first of which took effect. about: for `Calls` of the
    server's functions: only passes that call this one count.
    """

    place: str
    when: Literal["before", "after", "between"]
    nth: int = 1
    act: signal.Signals = signal.SIGKILL
    about: str = ""

    def __call__(self) -> None:
        passes = 0

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal passes
                client, calls = args[1:3] if self.about else (None, [])
                due = [call for call in calls if call.name == self.about]
                if self.about and len(due) < (2 if self.when == "between" else 1):
                    return original(*args, **kwargs)
                passes += 1
                if passes != self.nth:
                    return original(*args, **kwargs)
                if self.when == "between":
                    call_many(client, due[:1])
                result = original(*args, **kwargs) if self.when == "after" else None
                os.kill(os.getpid(), self.act)
                return result if self.when == "after" else original(*args, **kwargs)  # once it was woken

            return wrapped

        replace(self.place, make)


class Child:
    """`statebelt worker` with changes."""

    def __init__(self, environment: dict[str, str], log: Path, changes: Sequence[Change]) -> None:
        self.log = log
        self.process = _FORKS.Process(target=_main, args=(environment, log, list(changes)), daemon=True)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join(10)

    def died(self, deadline_s: float = 30) -> int | None:
        """Wait for its end: its exit status, negative for a signal; None if it goes on living."""
        self.process.join(deadline_s)
        return self.process.exitcode

    def wait_stopped(self) -> None:
        stat = Path(f"/proc/{self.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", f"a stop of the worker; see {self.log}")


def _main(environment: dict[str, str], log: Path, changes: list[Change]) -> None:
    ctypes.CDLL(None).prctl(
        1, int(signal.SIGKILL), 0, 0, 0
    )  # PR_SET_PDEATHSIG: nothing is left if the tests are killed
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.update(environment)
    for change in changes:
        change()
    from pipeline.cli import main

    sys.argv = ["statebelt", "worker"]
    main()
