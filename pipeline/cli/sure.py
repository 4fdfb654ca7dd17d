"""Asking before something is gone for good."""

from __future__ import annotations

from typing import Annotated

import typer

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


def sure(question: str) -> None:
    """Ask, on standard error; return on yes.

    Raises:
        typer.Exit: no; nothing is done.
        ConfigError: nobody is there to answer.
    """
    from pipeline.errors import ConfigError

    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        raise ConfigError("nobody answered, so nothing was done; --yes does it without asking") from None
    if not agreed:
        typer.echo("nothing was done", err=True)
        raise typer.Exit(1)
