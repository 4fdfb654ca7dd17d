"""Ctrl-C while something is imported: held back until it is.

A KeyboardInterrupt in the middle of an import goes through the initialisation of C extensions, and few bear it:
pybind11 (onnxruntime, scipy) turns it into `ImportError: initialization failed`, nanobind (soxr) ends the process by
signal 6 or 11, pydantic panics, and what is raised in one of importlib's own callbacks is dropped. Commands import
late, so nearly any moment of a command's first second lies in an import.

Python also drops what a handler raises in a finaliser, at any time: hence `check`.
"""

from __future__ import annotations

import signal
from types import FrameType

_AGAIN_S = 0.001

_came = False


def importing(frame: FrameType | None) -> bool:
    """Whether `frame`, the one that a signal came to, lies in an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler as `signal.default_int_handler`: raises KeyboardInterrupt, while importing as soon as that is over."""
    global _came
    _came = True
    if importing(frame):
        later(number)
    else:
        signal.default_int_handler(number, frame)


def later(number: int) -> None:
    """Send this signal to ourselves once more in a moment, for whoever handles it then."""
    signal.signal(signal.SIGALRM, lambda _number, _frame: signal.raise_signal(number))
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)


def hold_back() -> None:
    """From here on, Ctrl-C waits for imports. Not where it is ignored, as in the background of a shell."""
    global _came
    _came = False
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def check() -> None:
    """Raises KeyboardInterrupt if one was due and has not got here: held back still, or dropped on its way."""
    if _came:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt
