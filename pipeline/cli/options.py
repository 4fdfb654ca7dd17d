"""Flags that several commands share. None means: as the settings say."""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option(help="Redis: redis://, rediss:// or unix://.", show_default="REDIS_URL, or the server of this folder"),
]
Topic = Annotated[str | None, typer.Option(help="The named set of streams.", show_default="audio")]
Group = Annotated[str | None, typer.Option(help="The deployment whose results are meant.", show_default="digits")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on standard output, for machines.")]
