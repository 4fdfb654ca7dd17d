"""Ctrl-C in the first second of a command, when it imports: no traceback, no crash, and it is not lost."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.cli import interrupt, main

# nanobind makes soxr's enumerations in C++, by calls of Python code; Ctrl-C comes within the first of them.
AT_SOXRS_ENUM = """
import enum, os, signal, sys
plain, told = enum.EnumType.__call__, []
def call(*given, **named):
    if "soxr" in sys.modules and not told:
        told.append(True)
        os.kill(os.getpid(), signal.SIGINT)
    return plain(*given, **named)
enum.EnumType.__call__ = call
"""


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("_came", False), ("_since_s", None), ("_aside", None)):
        monkeypatch.setattr(interrupt, name, value)
    numbers = (signal.SIGINT, signal.SIGALRM)
    before, timer = {number: signal.getsignal(number) for number in numbers}, signal.getitimer(signal.ITIMER_REAL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, *timer)  # pytest's own, for tests that hang
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def interrupted_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in whose import Ctrl-C comes; it tells whether it was imported to its end."""
    source = "import os, signal, told\nos.kill(os.getpid(), signal.SIGINT)\nsum(range(1000))\ntold.whole = True\n"
    (tmp_path / "interrupted.py").write_text(source)
    (tmp_path / "told.py").write_text("whole, came = False, []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("interrupted", "told"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "interrupted"


def _import_and_wait(name: str) -> None:
    importlib.import_module(name)
    signal.sigtimedwait([], 30)  # ended by a handler that raises


def _told() -> bool:
    return bool(importlib.import_module("told").whole)


def test_what_is_imported_is_imported_whole_and_the_interrupt_comes_after(interrupted_module: str) -> None:
    interrupt.hold_back()
    with pytest.raises(KeyboardInterrupt):
        _import_and_wait(interrupted_module)
    assert _told()


def test_without_it_an_import_is_broken_off(interrupted_module: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(interrupted_module)
    assert not _told()


def test_elsewhere_it_comes_at_once() -> None:
    interrupt.hold_back()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_whoever_handles_it_by_then_is_told(interrupted_module: str, tmp_path: Path) -> None:
    """The worker handles signals itself, after its imports."""
    with (tmp_path / "interrupted.py").open("a") as source:
        source.write("signal.signal(signal.SIGINT, lambda number, _frame: told.came.append(number))\n")
    interrupt.hold_back()
    told = importlib.import_module("told")
    importlib.import_module(interrupted_module)
    while not told.came:
        signal.sigtimedwait([], 0.05)
    assert told.came == [signal.SIGINT]


def test_one_that_python_dropped_is_found_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a handler raises in a finaliser comes to nobody."""
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: dropped.append(it.exc_type))

    class Finalised:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(100):
                pass

    interrupt.hold_back()
    interrupt.check()
    Finalised()
    assert dropped == [KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()


def test_the_alarm_of_others_goes_on(interrupted_module: str) -> None:
    """A worker's deadline: a second Ctrl-C within an import must not end it."""

    def deadline(_number: int, _frame: object) -> None: ...

    signal.signal(signal.SIGALRM, deadline)
    signal.setitimer(signal.ITIMER_REAL, 100)
    interrupt.hold_back()
    with pytest.raises(KeyboardInterrupt):
        _import_and_wait(interrupted_module)
    assert signal.getsignal(signal.SIGALRM) is deadline
    assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100


def test_an_import_that_hangs_is_broken_off(
    interrupted_module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "_PATIENCE_S", 0.05)
    source = (tmp_path / "interrupted.py").read_text()
    (tmp_path / "interrupted.py").write_text(source.replace("sum(range(1000))", "signal.sigtimedwait([], 30)"))
    interrupt.hold_back()
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(interrupted_module)
    assert not _told()


def test_released_it_is_as_it_was(interrupted_module: str) -> None:
    alarm = signal.getsignal(signal.SIGALRM)
    interrupt.hold_back()
    with pytest.raises(KeyboardInterrupt):
        _import_and_wait(interrupted_module)
    interrupt.release()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGALRM) is alarm


def test_in_a_thread_that_gets_no_signals_nothing_is_done() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(interrupt.hold_back).result()
        pool.submit(interrupt.release).result()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("raised", "became"), [(SystemExit(0), 130), (SystemExit(2), 130), (RuntimeError("ours"), "ours")]
)
def test_one_that_was_dropped_ends_the_command_as_interrupted_but_hides_no_bug(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, became: object
) -> None:
    def command() -> None:
        monkeypatch.setattr(interrupt, "_came", True)
        raise raised

    monkeypatch.setattr("pipeline.cli.app.app", command)
    with pytest.raises(type(raised)) as ended:
        main()
    assert ended.value.args == (became,)


def test_where_it_is_ignored_it_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.hold_back()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_command_that_imports_soxr_ends_as_interrupted(tmp_path: Path) -> None:
    """It used to end by signal 6 or 11 here, where nanobind's C++ meets KeyboardInterrupt."""
    soundfile.write(tmp_path / "rate.wav", np.zeros(16000, np.float32), 16000)  # not the bundle's: soxr is needed
    (tmp_path / "sitecustomize.py").write_text(AT_SOXRS_ENUM)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", "digits", str(tmp_path / "rate.wav")],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (130, "")
