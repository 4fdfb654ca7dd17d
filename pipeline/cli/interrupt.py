"""Ctrl-C while something is imported: held back until it is.

A KeyboardInterrupt in the middle of an import goes through the initialisation of C extensions, and few bear it:
pybind11 (onnxruntime, scipy) turns it into `ImportError: initialization failed`, nanobind (soxr) ends the process by
signal 6 or 11, pydantic panics, and what is raised in one of importlib's own callbacks is dropped. Commands import
late, so nearly any moment of a command's first second lies in an import.

Python also drops what a handler raises in a finaliser, at any time: hence `check`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_AGAIN_S = 0.001
_PATIENCE_S = 3.0
"""An import that takes longer hangs, on a file system say: then Ctrl-C ends it, as ever."""

_came = False
_since_s: float | None = None
_aside: tuple[Callable[[int, FrameType | None], Any] | int | None, float] | None = None
"""Whose SIGALRM it was, and the seconds that his timer had left."""


def hold_back() -> None:
    """From here on until `release`, Ctrl-C waits for imports. Not where it is ignored, as in the background of a shell,
    nor in a thread that gets no signals."""
    global _came, _since_s
    _came, _since_s = False, None
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, interrupt)


def release() -> None:
    """As it was before `hold_back`. What is held back still is forgotten."""
    if threading.current_thread() is threading.main_thread():
        _put_back()
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def check() -> None:
    """Raises KeyboardInterrupt if one was due and has not got here: held back still, or dropped on its way."""
    if _came:
        _put_back()
        raise KeyboardInterrupt


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler as `signal.default_int_handler`: raises KeyboardInterrupt, while importing as soon as that is over."""
    global _came
    _came = True
    if not waits(number, frame):
        signal.default_int_handler(number, frame)


def waits(number: int, frame: FrameType | None) -> bool:
    """Whether a handler is to do nothing now: `frame`, to which its signal came, lies in an import. Then the signal
    comes once more in a moment, to whoever handles it by then."""
    global _since_s, _aside
    if not _importing(frame):
        _since_s = None
        return False
    if _since_s is None:
        _since_s = time.monotonic()
    if time.monotonic() - _since_s > _PATIENCE_S:
        return False
    if _aside is None:
        _aside = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0]
    signal.signal(signal.SIGALRM, lambda _number, _frame: _again(number))
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    return True


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _again(number: int) -> None:
    _put_back()
    signal.raise_signal(number)


def _put_back() -> None:
    """SIGALRM and its timer, to whoever had them: a worker's deadline, say."""
    global _aside
    if _aside is not None:
        (handler, left_s), _aside = _aside, None
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, left_s)
