"""`statebelt redis`: the embedded server in the foreground."""

from __future__ import annotations

import signal
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import interrupt
from pipeline.cli.console import err, examples, out

EXAMPLES = examples(
    ("statebelt redis", "data in .statebelt/redis of this folder; other commands find it there"),
    ("statebelt redis --port 6380", "also on 127.0.0.1:6380, for redis-cli and other machines' tunnels"),
    ("statebelt redis --fsync always", "a power loss loses nothing acknowledged (slower)"),
)


class Fsync(StrEnum):
    """When the append-only file reaches the disk."""

    ALWAYS = "always"
    EVERYSEC = "everysec"


def redis(
    data: Annotated[
        Path | None, typer.Option(help="Where its data lives; made if absent.", show_default=".statebelt/redis")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Also listen on this port of 127.0.0.1; 0: only on its socket.")
    ] = 0,
    fsync: Annotated[Fsync, typer.Option(help="When writes reach the disk.")] = Fsync.EVERYSEC,
) -> None:
    """Run a real server (Valkey) of your own, in the foreground. Ctrl-C stops it; its data stays."""
    from pipeline.broker.embedded import EmbeddedServer
    from pipeline.errors import BrokerUnavailable
    from pipeline.settings import DATA_DIR

    stopping = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    folder = data or DATA_DIR
    with EmbeddedServer(folder, port=port, fsync=fsync.value) as server:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)
        interrupt.check()
        out.print(f"[bold green]ready[/]  {server.url}", soft_wrap=True)
        if port:
            out.print(f"       redis://127.0.0.1:{port}", soft_wrap=True)
        out.print(f"       data in {server.data_dir} (fsync {fsync.value}); Ctrl-C stops it\n", soft_wrap=True)
        if data is not None:
            out.print("In other terminals:", f"  [cyan]export REDIS_URL='{server.url}'[/]", sep="\n", soft_wrap=True)
        else:
            out.print("In other terminals, in this folder:")
        out.print("  [cyan]statebelt worker[/]\n  [cyan]statebelt tail[/]\n  [cyan]statebelt push FILE[/]")
        while server.running and not stopping:
            time.sleep(0.1)
        if not stopping:
            raise BrokerUnavailable(f"the server ended by itself; its log:\n{server.log_tail()}")
        err.print("stopping ...", style="dim")
