"""`make chaos`: workers, producers and a server, killed, frozen and cut off; then every byte is compared.

Exit status 0 only if nothing is lost, doubled, out of order or different, and every planned fault took place.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.run import run
from tests.chaos.schedule import Counts, draw

CHUNKS_A_MINUTE = 17_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.chaos")
    parser.add_argument("--minutes", type=float, default=12.0, help="12 reach the numbers of issue 3")
    parser.add_argument("--seed", type=int, default=None, help="the same seed and minutes: the same schedule")
    parser.add_argument("--workers", type=int, default=6, help="processes at a time, of two groups")
    parser.add_argument("--streams", type=int, default=120, help="open at a time")
    parser.add_argument(
        "--row-every", type=int, nargs="+", default=[1], help="chunks between two commits of a row; workers take turns"
    )
    parser.add_argument("--pair", action="store_true", help="a primary and a replica, which fail over")
    parser.add_argument("--chunks", type=int, default=None, help=f"by default {CHUNKS_A_MINUTE} a minute")
    parser.add_argument("--schedule", action="store_true", help="print the schedule and do nothing")
    parser.add_argument("--report", type=Path, default=None, help="where to write the report as JSON")
    parser.add_argument("--keep", type=Path, default=None, help="a new folder that is kept: logs, data, plans")
    given = parser.parse_args()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    counts, seconds = Counts.of(given.minutes, pair=given.pair), given.minutes * 60
    print(f"SEED={seed} MINUTES={given.minutes:g} WORKERS={given.workers} STREAMS={given.streams}", end="")
    print(" PAIR=1" if given.pair else "", flush=True)
    if given.schedule:
        for event in draw(seed, counts, seconds):
            print(f"{event.at_s:8.2f} s  {event.kind:15} {event.pick:.3f} {event.size:.3f} {event.way:.3f}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the exits that end what was started
    folder = given.keep or Path(tempfile.mkdtemp(prefix="chaos-")) / "run"
    report = run(
        folder,
        seed=seed,
        counts=counts,
        seconds=seconds,
        chunks=given.chunks or round(CHUNKS_A_MINUTE * given.minutes),
        open_streams=given.streams,
        workers=given.workers,
        row_every=given.row_every,
        pair=given.pair,
    )
    report.show()
    where = given.report or Path("runs") / "chaos" / f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}.json"
    report.save(where)
    print(f"report: {where}")
    if not report.passed:
        print(f"logs and data: {folder}")
    elif given.keep is None:
        shutil.rmtree(folder.parent)
    return not report.passed


if __name__ == "__main__":
    sys.exit(main())
