"""Logs: JSON lines with their context, on standard error and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

CONTEXT = "topic='calls', group='digits', partition=3"


def lines(body: str) -> tuple[str, list[str]]:
    """Standard output and the lines on standard error of a program of its own."""
    program = f"from pipeline.logs import configure, logger\n{body}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout, done.stderr.splitlines()


def test_json_lines_carry_their_context() -> None:
    out, told = lines(
        f"configure('info', 'json')\nlog = logger({CONTEXT})\nlog.info('gap', stream='größe', expected_seq=7)\n"
        "log.debug('not this')\nlog.bind(stream='b').warning('rejected', raw=b'x', count=2)\n"
    )
    assert out == ""
    first, second = map(json.loads, told)
    now = datetime.now(UTC)
    assert now - timedelta(minutes=1) < datetime.fromisoformat(first.pop("timestamp")) <= now
    common = {"topic": "calls", "group": "digits", "partition": 3}
    assert first == {**common, "stream": "größe", "event": "gap", "expected_seq": 7, "level": "info"}
    assert second["stream"] == "b"
    assert (second["level"], second["count"]) == ("warning", 2)


def test_what_is_no_terminal_gets_json_by_default() -> None:
    _, told = lines("configure()\nlogger(partition=3).error('x')")
    assert json.loads(told[0])["partition"] == 3


def test_console_lines_are_for_people() -> None:
    out, told = lines(f"configure('info', 'console')\nlogger({CONTEXT}).info('ready', stream='a')")
    assert out == ""
    for word in ("ready", "topic=calls", "group=digits", "partition=3", "stream=a"):
        assert word in told[0]
    assert "\033" not in told[0]


def test_a_library_never_writes_to_somebodys_standard_output() -> None:
    out, told = lines("logger(stream='a').info('x')")
    assert out == ""
    assert json.loads(told[0])["stream"] == "a"


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level: str, heard: int) -> None:
    _, told = lines(f"configure('{level}', 'json')\nlog = logger()\nfor f in (log.debug, log.info, log.warning, "
                    "log.error): f('x')")  # fmt: skip
    assert len(told) == heard


def test_an_exception_is_one_line() -> None:
    _, told = lines(
        "configure('info', 'json')\ntry: 1 / 0\nexcept ZeroDivisionError: logger(stream='a').exception('failed')"
    )
    assert len(told) == 1
    found = json.loads(told[0])
    assert found["stream"] == "a"
    assert found["exception"][0]["exc_type"] == "ZeroDivisionError"
