"""How the command line speaks: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from pipeline.cli.plain import escaped
from pipeline.errors import ChunkRejected, ConfigError, ManifestError, RecordingError

out = Console()
err = Console(stderr=True)


def emit(record: object) -> None:
    """One JSON line on standard output, at once."""
    sys.stdout.write(json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _harmless(message: str) -> str:
    """A message as a terminal may have it: names of files and columns in it are anybody's."""
    return "\n".join(escaped(line) for line in message.split("\n"))


def say_error(message: str) -> None:
    """One red sentence."""
    err.print(Text(f"error: {_harmless(message)}", style="red"), soft_wrap=True)


def say_warning(message: str) -> None:
    """One yellow sentence."""
    err.print(Text(f"warning: {_harmless(message)}", style="yellow"), soft_wrap=True)


def abandon_output() -> None:
    """Where standard output cannot be written, have nobody try again: the interpreter would, when it exits, and show a
    traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def exit_status(error: Exception) -> int:
    """2 for a mistake in what was asked, 1 for what went wrong on the way."""
    return 2 if isinstance(error, (ChunkRejected, ConfigError, ManifestError, RecordingError)) else 1


def examples(*lines: tuple[str, str]) -> str:
    """The epilog of a command's help: what it does, and what one types for it."""
    return "[bold]Examples[/]\n" + "\n".join(
        f"[dim]  # {escape(what)}[/]\n  [cyan]{escape(command)}[/]" for command, what in lines
    )
