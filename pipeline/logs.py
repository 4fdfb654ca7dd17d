"""Structured logs, to standard error: JSON lines for machines, readable ones on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


def configure(level: str = "info", form: Literal["auto", "json", "console"] = "auto") -> None:
    """Set up logging for a process; later calls replace earlier ones."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # looked up at every line: whoever replaces sys.stderr (a test, a supervisor) gets the logs
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
    )


def logger(**context: object) -> structlog.typing.FilteringBoundLogger:
    """A logger that adds `context` (topic, group, partition, stream, ...) to every line."""
    if not structlog.is_configured():  # used as a library: never on somebody's standard output
        configure()
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(**context)
    return bound
