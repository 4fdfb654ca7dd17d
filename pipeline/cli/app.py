"""The application: which commands there are, and what becomes of an error."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.cli import adopt, bundle_info, dead, functions, group, offline, push, server, tail, topics, verify, worker
from pipeline.cli.console import exit_status, say_error
from pipeline.cli.demo import command as demo_command
from pipeline.errors import StatebeltError


class _Group(TyperGroup):
    """Turns our errors into one sentence and an exit status; a traceback would be a bug of ours."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StatebeltError as error:
            say_error(str(error))
            raise typer.Exit(exit_status(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    name="statebelt",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
    Streaming inference for models that remember, on Redis Streams.

    See it work, on this machine alone:
      [cyan]statebelt demo[/]

    By hand, each in a terminal of its own:
      [cyan]statebelt redis[/]                            [dim]a server, if you have none[/]
      [cyan]statebelt worker[/]                           [dim]runs the shipped digits bundle[/]
      [cyan]statebelt tail[/]                             [dim]shows what is said[/]
      [cyan]statebelt push talk.wav --pace realtime[/]    [dim]says it[/]

    Settings come from flags, then STATEBELT_* variables (and REDIS_URL), then ./statebelt.toml.
    """,
)


@app.callback()
def _statebelt() -> None:
    pass


app.command("demo", epilog=demo_command.EXAMPLES)(demo_command.demo)
app.command("redis", epilog=server.EXAMPLES)(server.redis)
app.command("worker", epilog=worker.EXAMPLES)(worker.worker)
app.command("push", epilog=push.EXAMPLES)(push.push)
app.command("tail", epilog=tail.EXAMPLES)(tail.tail)
app.command("topics", epilog=topics.EXAMPLES)(topics.topics)
app.add_typer(dead.app, name="dead")
app.add_typer(group.app, name="group")
app.command("load-functions", epilog=functions.EXAMPLES)(functions.load_functions)
app.command("adopt", epilog=adopt.EXAMPLES)(adopt.adopt)
app.command("verify", epilog=verify.EXAMPLES)(verify.verify)
app.command("inspect", epilog=bundle_info.EXAMPLES)(bundle_info.inspect)
app.command("run", epilog=offline.EXAMPLES)(offline.run)
