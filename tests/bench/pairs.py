"""Two versions of the worker in turns, under the same live loads: what a change did to latency and cost.

    git worktree add /tmp/before HEAD~1
    python -m tests.bench.pairs /tmp/before . --streams 350 600

Each turn measures every load with each checkout's worker, one after the other, on one server; producer and reader are
this checkout's for both. Latencies are from push to result in ms, CPU is us a 100 ms chunk; medians over turns, and
each turn's latencies. Of the second checkout a sample of the streams is compared with the whole run, byte for byte; the
first may be from a time when last bits were others.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import contest, runner, yardstick
from tests.bench.contest import Ground
from tests.bench.figures import GRID
from tests.bench.subject import Subject

BACKLOG = (256, 2)
"""Streams and turns that come first: code, caches, the first rows."""


def measure(ground: Ground, subject: Subject, checkout: Path, streams: int, seconds: float) -> dict[str, float]:
    """One load with the worker of one checkout."""
    with contextlib.ExitStack() as stack:
        with contextlib.chdir(checkout):  # a module is looked for here first
            running = stack.enter_context(contest.match(ground, subject))
        running.drain(*BACKLOG)
        found: dict[str, Any] = running.live(streams, seconds)
    p50, p99 = (found["pushed_ms"][GRID.index(q)] for q in (50, 99))
    return {"p50": p50, "p99": p99, "worker": found["us"], "server": found["server_us"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench.pairs")
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--streams", type=int, nargs="+", default=[350, 600], help="live streams of each load")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=4)
    given = parser.parse_args()
    checkouts = {"before": given.before.resolve(), "after": given.after.resolve()}
    found: defaultdict[tuple[int, str], list[dict[str, float]]] = defaultdict(list)
    console = Console(stderr=True)
    with runner.ground() as ground:
        subject = Subject("statebelt", "belt", yardstick.write(ground.folder).scores)
        for turn in range(given.turns):
            for streams in given.streams:
                for which, checkout in checkouts.items():
                    console.print(f"turn {turn + 1} of {given.turns}: {streams} streams, {which}", highlight=False)
                    one = replace(subject, compared=which == "after")
                    found[streams, which].append(measure(ground, one, checkout, streams, given.seconds))
    Console().print(table(found))


def table(found: dict[tuple[int, str], list[dict[str, float]]]) -> Table:
    """Medians, and of each turn p50/p99."""
    made = Table("streams", "", "p50 ms", "p99 ms", "worker us", "server us", "turn by turn: p50/p99")
    for (streams, which), turns in found.items():
        middle = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        each = ", ".join(f"{turn['p50']:.0f}/{turn['p99']:.0f}" for turn in turns)
        figures = [f"{middle[name]:.1f}" for name in ("p50", "p99")]
        figures += [f"{middle[name]:.0f}" for name in ("worker", "server")]
        made.add_row(str(streams), which, *figures, each)
    return made


if __name__ == "__main__":
    main()
