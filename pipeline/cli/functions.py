"""`statebelt load-functions`: what an administrator does once, so that least-privilege users need not be able to."""

from __future__ import annotations

from contextlib import closing

from pipeline.cli import options
from pipeline.cli.console import emit, examples, out

EXAMPLES = examples(
    ("statebelt load-functions --url redis://admin:PASSWORD@host:6379", "once for each version, before its workers"),
)


def load_functions(url: options.Url = None, as_json: options.Json = False) -> None:
    """Load this version's functions into Redis: the atomic acts that workers and producers call.

    Needed only where users may not load them themselves, as those of deploy/acl; else the first who misses them does.
    Versions live side by side, and running workers keep theirs.
    """
    from pipeline.broker import functions
    from pipeline.broker.connection import connect, shown
    from pipeline.cli.reach import reach
    from pipeline.settings import load_settings

    where = reach(load_settings(url=url))
    with closing(connect(where)) as client:
        new = functions.load(client)
    if as_json:
        emit({"functions": functions.library(), "loaded": new})
    else:
        what = "loaded" if new else "there already:"
        out.print(f"{what} {functions.library()} at {shown(where)}", highlight=False, markup=False, soft_wrap=True)
