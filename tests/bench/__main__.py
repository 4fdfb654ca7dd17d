"""`make bench`: all contenders side by side, one run, on this machine. `make bench-check`: are the ratios still so?

Ratios of one run mean something, absolute times on a shared machine little: every figure is the median of several
turns in which all contenders are measured one after the other, on the same server and the same recording.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench import runner, show, summary
from tests.bench.contest import Pace
from tests.bench.figures import better, compare
from tests.bench.runner import Plan

REFERENCE = Path(__file__).with_name("reference.json")
CHECKED = ("ceiling", "statebelt", "loop", "faststream", "vad")


def plan_of(given: argparse.Namespace) -> Plan:
    """Flags to a plan: the short one measures the contest alone, the check nothing but what ratios need."""
    checks = given.check or given.write_reference
    short = given.quick or checks
    names = given.only or (CHECKED if short else runner.NAMES)
    turns = given.turns or (3 if checks else 2 if short else 3)
    seconds = given.seconds or (2.0 if short else 5.0)
    parts = () if checks else ("most",) if short else ("half", "most")
    return Plan(
        names=names,
        turns=turns,
        curve_turns=1 if short else 2 * turns,  # as many forth as back
        pace=Pace(drain_s=0.5 if short else 1.0, flood_s=2.0, seconds=seconds, parts=parts, floods=3),
        curve_s=min(seconds, 3.0),
        alone_s=1.0 if short else 2.0,
        known=given.known,
    )


def measure(plan: Plan, console: Console) -> dict[str, Any]:
    with runner.ground() as ground:
        return runner.Runner(ground, plan, console).everything()


def save(run: dict[str, Any], folder: Path) -> Path:
    """A dated JSON and its plots."""
    from tests.bench.plots import plot

    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}"
    path = stem.with_name(f"{stem.name}.json")
    path.write_text(json.dumps({**run, "ratios": summary.ratios(run)}, indent=1) + "\n")
    plot(run, stem)
    return path


def check(plan: Plan, console: Console) -> int:
    """Exit 1 if a ratio is lost, twice."""
    committed = json.loads(REFERENCE.read_text())["ratios"]
    run = measure(plan, console)
    found = summary.ratios(run)
    verdicts = compare(committed, found)
    if any(verdict.lost for verdict in verdicts):
        show.show_check(verdicts)
        console.print("a loss; once more, as a loss counts when it is there twice")
        verdicts = compare(committed, better(found, summary.ratios(measure(plan, console))))
    show.show_check(verdicts)
    for name, why in run["skipped"].items():
        print(f"skipped: {name}: {why}")
    lost = [verdict.name for verdict in verdicts if verdict.lost]
    print("FAILED: lost: " + ", ".join(lost) if lost else "passed: no ratio lost more than it may")
    return bool(lost)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=runner.NAMES, metavar="NAME", help=", ".join(runner.NAMES))
    parser.add_argument("--quick", action="store_true", help="the contest alone, in about a minute")
    parser.add_argument("--turns", type=int, help="of every contender")
    parser.add_argument("--seconds", type=float, help="of every live measurement")
    parser.add_argument("--known", type=int, nargs="+", default=list(runner.curves.KNOWN), help="streams, to 100000")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="where JSON and plots go")
    parser.add_argument("--check", action="store_true", help="a short run's ratios against reference.json")
    parser.add_argument("--write-reference", action="store_true", help="make this short run's ratios the reference")
    given = parser.parse_args(arguments)
    console, plan = Console(stderr=True, width=show.WIDTH), plan_of(given)
    if given.check:
        return check(plan, console)
    run = measure(plan, console)
    show.show(run)
    path = save(run, given.out)
    print(f"{run['took_s']:.0f} s; {path} and its plots beside it")
    if given.write_reference:
        written = {"machine": run["machine"], "ratios": {n: round(r, 3) for n, r in summary.ratios(run).items()}}
        REFERENCE.write_text(json.dumps(written, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
