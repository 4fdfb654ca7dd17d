"""One run: draw, perform, wait for quiet, verify, tell."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos import bundles
from tests.chaos.oracle import Oracle
from tests.chaos.plan import Plan, draw
from tests.chaos.producer import Journal
from tests.chaos.schedule import Counts
from tests.chaos.schedule import draw as draw_schedule
from tests.chaos.stage import PARTITIONS, TOPIC, Source, Stage
from tests.chaos.verifier import Verdict, verify

CUTS = ("lose_reply", "cut_reply", "cut_request", "cut_all")
DELAYS = ("delay_reply", "delay_request")
NO_PROGRESS_S = 60.0


@dataclass
class Report:
    """What was planned, what happened, and what the verifier says of each group: of its logs, and of what a consumer
    was handed meanwhile."""

    seed: int
    planned: Counts
    chunks: int
    streams: int
    happened: dict[str, int]
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    heard: dict[str, Verdict] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    seconds: float = 0.0
    verify_s: float = 0.0

    @property
    def total(self) -> Verdict:
        """Of all logs."""
        return sum(self.verdicts.values(), Verdict())

    @property
    def told(self) -> Verdict:
        """Of all consumers."""
        return sum(self.heard.values(), Verdict())

    @property
    def passed(self) -> bool:
        """Nothing wrong, nothing unexplained, and all that was planned took place."""
        done = all(self.happened.get(name, 0) >= count for name, count in asdict(self.planned).items())
        every = [*self.verdicts.values(), *self.heard.values()]
        compared = all((v.streams, v.chunks) == (self.streams, self.chunks) for v in every)
        both = bool(self.verdicts) and self.verdicts.keys() == self.heard.keys()
        return done and compared and both and self.total.silent and self.told.silent and not self.defects

    def show(self) -> None:
        told = Table("", "planned", "happened", title=f"chaos, seed {self.seed}")
        for name, count in asdict(self.planned).items():
            told.add_row(name.replace("_", " "), str(count), str(self.happened.get(name, 0)))
        for name in (
            *CUTS,
            *DELAYS,
            "started",
            "gave up at start",
            "left at the deadline",
            "partitions dropped",
            "all partitions dropped",
            "partitions replayed",
            "commits retried",
            "sent again",
        ):
            told.add_row(f"  {name.replace('_', ' ')}", "", str(self.happened.get(name, 0)))
        told.add_row("chunks pushed", str(self.chunks), str(self.total.chunks // max(1, len(self.verdicts))))
        told.add_row("streams", str(self.streams), str(self.total.streams // max(1, len(self.verdicts))))
        told.add_row("results compared", str(self.chunks * len(self.verdicts)), str(self.total.results))
        told.add_row("bytes compared", "", f"{self.total.compared_bytes:,}")
        told.add_row("results handed to consumers", str(self.chunks * len(self.heard)), str(self.told.results))
        told.add_row("  again, after a failover", "", str(self.happened.get("handed out again", 0)))
        for name in Verdict.FAULTS:
            told.add_row(name, "0", str(getattr(self.total, name)))
            if getattr(self.told, name):
                told.add_row(f"{name}, by a consumer", "0", str(getattr(self.told, name)))
        told.add_row("other defects", "0", str(len(self.defects)))
        told.add_row("seconds (and to verify)", "", f"{self.seconds:.0f} ({self.verify_s:.0f})")
        Console(width=100).print(told)
        for line in [*self.total.examples, *(f"consumer: {line}" for line in self.told.examples), *self.defects]:
            print(line)
        print("passed" if self.passed else f"FAILED (again: SEED={self.seed})")

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**asdict(self), "passed": self.passed}, indent=1))


def run(
    folder: Path,
    *,
    seed: int,
    counts: Counts,
    seconds: float,
    chunks: int,
    open_streams: int,
    workers: int,
    row_every: Sequence[int] = (1,),
    pair: bool = False,
) -> Report:
    """Chaos in `folder`, which must not exist. Faults come within `seconds`; producers pace themselves to that.

    row_every: chunks between two commits of a row; workers that are started take the next of them in turn.
    pair: two servers, of which one takes over from the other; producers wait for both.
    """
    folder.mkdir(parents=True)
    paths = bundles.write(folder)
    plans = [draw(seed, n, chunks // 4 + 1, max(1, open_streams // 4)) for n in range(4)]
    # Producers go on a little after the last fault: one that nothing passes would never take place.
    sources = [_source(folder, n, plan, 1.08 * seconds, int(pair)) for n, plan in enumerate(plans)]
    schedule = draw_schedule(seed, counts, seconds)
    began_s = time.monotonic()
    with Stage(folder, paths, workers, row_every, pair=pair) as stage:
        stage.wait_for_workers()
        for source in sources:
            stage.add_source(source)
        start_s = time.monotonic()
        for event in schedule:
            due_s = start_s + event.at_s
            stage.wait(lambda due_s=due_s: time.monotonic() >= due_s, due_s)  # type: ignore[misc]
            stage.perform(event)
        _await_quiet(stage)
        stage.dismiss()
        happened = stage.happened + stage.proxy.happened
        happened["cuts"] = sum(happened[name] for name in CUTS)
        happened["delays"] = sum(happened[name] for name in DELAYS)
        happened["partitions dropped"] = stage.told("partition_dropped")
        happened["all partitions dropped"] = stage.told("partitions_dropped")
        happened["partitions replayed"] = stage.told("replayed")
        happened["commits retried"] = stage.told("commit_retried")
        happened["sent again"] = sum(Journal(source.folder).again for source in sources)
        happened["handed out again"] = sum(each.heard.again for each in stage.listeners.values())
        report = Report(seed, counts, *_sizes(plans), dict(happened), defects=stage.defects)
        report.seconds = time.monotonic() - began_s
        sent = [each for source in sources for each in source.sent()]
        for group, path in paths.items():
            oracle = Oracle(path)
            report.verdicts[group] = verify(stage.client, TOPIC, group, PARTITIONS, sent, oracle)
            report.heard[group] = stage.listeners[group].heard.verdict(sent, oracle, may_repeat=pair)
    report.verify_s = time.monotonic() - began_s - report.seconds
    return report


def _source(folder: Path, n: int, plan: Plan, seconds: float, replicas: int) -> Source:
    where = folder / f"producer-{n}"
    plan.save(where)
    return Source(where, "library" if n == 0 else "raw", len(plan.chunks) / seconds, replicas)


def _sizes(plans: list[Plan]) -> tuple[int, int]:
    return sum(int((~p.chunks["again"]).sum()) for p in plans), sum(int(p.chunks["stream"].max()) + 1 for p in plans)


def _await_quiet(stage: Stage) -> None:
    """Until all is committed; or until nobody commits any more, which the verifier will tell as lost."""
    place, since_s = stage.place(), time.monotonic()
    while not stage.wait(stage.quiet, time.monotonic() + 1.0):
        now = stage.place()
        if now != place:
            place, since_s = now, time.monotonic()
        elif time.monotonic() - since_s > NO_PROGRESS_S:
            stage.defects.append(f"no commit for {NO_PROGRESS_S:.0f} s, and not all is done")
            return
