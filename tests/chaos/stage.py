"""The stage: a real server, a proxy before it, worker and producer processes; and what may befall them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from types import TracebackType

import numpy as np
import redis

from pipeline.broker import topic as topics
from tests.chaos.listener import Listener
from tests.chaos.plan import RATE_HZ, Plan, Sent
from tests.chaos.producer import Journal
from tests.chaos.schedule import Event
from tests.chaos.servers import Servers
from tests.harness import WorkerProcess
from tests.redis.proxy import Proxy

TOPIC, PARTITIONS, LEASE_MS = "audio", 8, 1500

WORKER = {
    "topic": TOPIC,
    "lease_ms": LEASE_MS,
    "publish": "chunks",
    "input_retention_ms": 10_000,
    "trim_every_ms": 1000,
    "belt_rows": 96,  # fewer than live streams: rows come and go
}
KINDS: tuple[dict[str, int], ...] = (
    {"read_entries": 64},  # there is no room to compute while a commit travels
    {"read_entries": 24, "max_batch": 4},  # there is, barely
)
ALONE = ("durable",)
PAIR = ("replicated", "replicated", "fast", "fast")
"""Durability: a failover takes from a fast worker what it had committed last, and it must notice."""

PATIENCE_S = 60.0


class Actor(WorkerProcess):
    """A worker on the stage: its group, and what is being done to it."""

    def __init__(self, group: str, url: str, bundle: Path, folder: Path, **settings: object) -> None:
        settings = {**WORKER, **settings, "group": group}
        super().__init__(url, bundle, folder, **settings)
        self.group = group
        self.frozen = self.leaving = False

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@dataclass
class Source:
    """A producer's process, and the plan that it goes through."""

    folder: Path
    kind: str
    rate: float
    replicas: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def finished(self) -> bool:
        return Journal(self.folder).finished

    def start(self, url: str, back: int = 0) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.producer"]
                + [str(x) for x in (self.folder, url, TOPIC, PARTITIONS, self.rate, back, self.kind, self.replicas)],
                stdout=log,
                stderr=log,
            )

    def sent(self) -> list[Sent]:
        plan = Plan.open(self.folder)
        return plan.sent(np.load(self.folder / "seqs.npy") if self.kind == "library" else None)


class Stage:
    """Everything that lives and dies in one run.

    Attributes:
        happened: how many of each fault took place, and of what else is worth telling.
        listeners: a consumer of each group.
        defects: what no fault explains, in words: a worker that ended by itself, or would not end.
    """

    def __init__(
        self, folder: Path, bundles: Mapping[str, Path], workers: int, row_every: Sequence[int], *, pair: bool = False
    ) -> None:
        self.happened: Counter[str] = Counter()
        self.defects: list[str] = []
        self._folder, self._bundles, self._workers = folder, dict(bundles), workers
        self._row_every, self._kinds, self._durability = cycle(row_every), cycle(KINDS), cycle(PAIR if pair else ALONE)
        self._servers = Servers(folder, pair=pair)
        self._actors: list[Actor] = []
        self.sources: list[Source] = []
        self.listeners: dict[str, Listener] = {}
        self._thaws: list[tuple[float, Actor]] = []
        self._tick = threading.Event()  # never set: the pace of a schedule
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        (self._folder / "workers").mkdir(parents=True)
        self._exit.enter_context(self._servers)
        self.proxy = self._exit.enter_context(Proxy(self._servers.socket))
        topics.create(self.client, topics.Topic(TOPIC, RATE_HZ, "int16", 1, PARTITIONS))
        self._exit.callback(self._kill_all)
        for n in range(self._workers):
            self._join(list(self._bundles)[n % len(self._bundles)])
        for group in self._bundles:
            self.listeners[group] = Listener(self.proxy.url, TOPIC, group)
            self._exit.callback(self.listeners[group].close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    @property
    def client(self) -> redis.Redis:
        """Of the primary, past the proxy."""
        return self._servers.client

    def wait_for_workers(self) -> None:
        """Until all partitions have owners."""
        leases = [f"sb:{{{TOPIC}/{p}}}:{group}:lease" for p in range(PARTITIONS) for group in self._bundles]
        if not self.wait(lambda: self.client.exists(*leases) == len(leases), time.monotonic() + PATIENCE_S):
            raise RuntimeError(f"after {PATIENCE_S:.0f} s there are partitions without a worker")

    def add_source(self, source: Source) -> None:
        self.sources.append(source)
        source.start(self.proxy.url)

    def perform(self, event: Event) -> None:
        getattr(self, f"_on_{event.kind}")(event)

    def wait(self, true: Callable[[], bool], deadline_s: float) -> bool:
        """Tend the stage until something is true; False if it did not come to be."""
        while not true():
            if time.monotonic() > deadline_s:
                return False
            self._tick.wait(0.02)
            self._tend()
        return True

    def quiet(self) -> bool:
        """Have the producers finished, and every group committed all they pushed?"""
        if self._thaws or not all(source.finished for source in self.sources):
            return False
        with contextlib.suppress(redis.RedisError, KeyError):
            logs = [f"sb:{{{TOPIC}/{p}}}:in" for p in range(PARTITIONS)]
            infos = [self.client.xinfo_groups(log) for log in logs if self.client.exists(log)]
            lags = [{str(i["name"].decode()): i["lag"] for i in info} for info in infos]
            return all(lag.get(group) == 0 for lag in lags for group in self._bundles)
        return False

    def place(self) -> list[bytes]:
        """Where every group stands in every log: as long as this changes, somebody works."""
        with contextlib.suppress(redis.RedisError):
            logs = [f"sb:{{{TOPIC}/{p}}}:in" for p in range(PARTITIONS)]
            return [
                i["last-delivered-id"] for log in logs if self.client.exists(log) for i in self.client.xinfo_groups(log)
            ]
        return []

    def told(self, event: str) -> int:
        """How often the workers' logs tell of something: worth showing, proof of nothing."""
        return sum(log.read_bytes().count(f'"{event}"'.encode()) for log in (self._folder / "workers").glob("*.log"))

    def dismiss(self) -> None:
        """SIGTERM to all: each must end by itself, in time and well."""
        self._thaw(everyone=True)
        left = [actor for actor in self._actors if actor.alive]
        for actor in left:
            actor.leaving = True
            actor.send(signal.SIGTERM)
        self.wait(lambda: not any(actor.alive for actor in left), time.monotonic() + 20)
        for actor in left:
            if actor.alive:
                self.defects.append(f"a worker did not end within 20 s of SIGTERM; see {actor.log}")
        self._tend()
        for group, listener in self.listeners.items():
            listener.close()
            if listener.failure is not None:
                self.defects.append(f"the consumer of {group} ended: {listener.failure!r}")

    # -- faults

    def _on_kills(self, event: Event) -> None:
        if victim := self._owner(event.pick):
            victim.process.kill()
            victim.process.wait()
            self._actors.remove(victim)
            self.happened["kills"] += 1
            self._join(victim.group)

    def _on_leaves(self, event: Event) -> None:
        if victim := self._owner(event.pick):
            if sum(a.group == victim.group and not a.leaving and not a.frozen for a in self._actors) < 2:
                self._join(victim.group)
            victim.leaving = True
            victim.send(signal.SIGTERM)
            self.happened["leaves"] += 1

    def _on_joins(self, event: Event) -> None:
        groups = Counter(dict.fromkeys(self._bundles, 0))
        groups.update(actor.group for actor in self._actors)
        self._join(min(groups, key=lambda group: groups[group]))
        self.happened["joins"] += 1

    def _on_freezes(self, event: Event) -> None:
        if victim := self._owner(event.pick):
            victim.send(signal.SIGSTOP)
            victim.frozen = True
            self._thaws.append((time.monotonic() + (1.2 + 1.3 * event.size) * LEASE_MS / 1000, victim))
            self.happened["freezes"] += 1

    def _on_server_kills(self, event: Event) -> None:
        start = self._servers.kill()
        self.happened["server_kills"] += 1
        self._after(2.0 * event.size * event.size)
        start()

    def _on_failovers(self, event: Event) -> None:
        back = self._servers.fail_over(die=event.way < 0.5)
        self.happened["failovers"] += 1
        self.proxy.lead_to(self._servers.socket)
        self._after(2.0 * event.size * event.size)
        back()

    def _after(self, seconds: float) -> None:
        due_s = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > due_s, due_s)

    def _on_cuts(self, event: Event) -> None:
        matching = b"sb_commit" if event.pick < 0.5 else b""
        way = int(event.way * 4)
        if way == 3:
            self.proxy.cut_all()
        else:
            (self.proxy.lose_reply, self.proxy.cut_reply, self.proxy.cut_request)[way](matching)

    def _on_delays(self, event: Event) -> None:
        matching = b"sb_commit" if event.pick < 0.5 else b""
        self.proxy.delay(0.05 + 2.5 * event.size**2, "request" if event.way < 0.5 else "reply", matching)

    def _on_producer_kills(self, event: Event) -> None:
        raws = [
            s for s in self.sources if s.kind == "raw" and not s.finished and s.process and s.process.poll() is None
        ]
        if raws:
            victim = raws[int(event.pick * len(raws))]
            assert victim.process is not None
            victim.process.kill()
            victim.process.wait()
            victim.start(self.proxy.url, back=int(event.size * 6))
            self.happened["producer_kills"] += 1

    # -- upkeep

    def _join(self, group: str) -> None:
        actor = Actor(
            group,
            self.proxy.url,
            self._bundles[group],
            self._folder / "workers",
            row_every_chunks=next(self._row_every),
            durability=next(self._durability),
            **next(self._kinds),
        )
        self._actors.append(actor)
        self.happened["started"] += 1

    def _owner(self, pick: float) -> Actor | None:
        """A worker that holds partitions now: to strike at one that starts or idles proves little."""
        found: list[Actor] = []

        def somebody() -> bool:
            pids = self._owning()
            found[:] = [a for a in self._actors if a.process.pid in pids and not (a.frozen or a.leaving) and a.alive]
            return bool(found)

        if not self.wait(somebody, time.monotonic() + PATIENCE_S):
            self.defects.append(f"for {PATIENCE_S:.0f} s no worker that could be struck held a partition")
            return None
        return found[int(pick * len(found))]

    def _owning(self) -> set[int]:
        """Process ids out of the leases: `<epoch> <host>-<pid>-<random>`."""
        keys = [f"sb:{{{TOPIC}/{p}}}:{group}:lease" for p in range(PARTITIONS) for group in self._bundles]
        with contextlib.suppress(redis.RedisError):
            return {int(value.decode().rsplit("-", 2)[1]) for value in self.client.mget(keys) if value}
        return set()

    def _tend(self) -> None:
        self._thaw()
        for actor in [a for a in self._actors if not a.alive]:
            self._actors.remove(actor)
            status = actor.process.returncode
            if actor.leaving and status == 0:
                continue
            log = actor.log.read_text()
            if actor.leaving and status == 1 and '"drain_deadline"' in log:
                self.happened["left at the deadline"] += 1  # as documented: told to leave while Redis was away
                continue
            away = any(words in log for words in ("no answer from Redis", "no Redis answers", "Redis answers "))
            if status == 1 and away and '"ready"' not in log:
                self.happened["gave up at start"] += 1  # as documented: a Redis that never was there is to be told
                self._join(actor.group)
                continue
            self.defects.append(
                f"a worker ended by itself with {status} ({'leaving' if actor.leaving else 'running'}):\n{log[-3000:]}"
            )
            if not actor.leaving:
                self._join(actor.group)
        for source in self.sources:
            if source.process and source.process.poll() not in (None, 0):
                raise RuntimeError(f"a producer failed:\n{(source.folder / 'log').read_text()[-3000:]}")

    def _thaw(self, everyone: bool = False) -> None:
        for due in list(self._thaws):
            at_s, actor = due
            if everyone or time.monotonic() >= at_s:
                self._thaws.remove(due)
                actor.frozen = False
                actor.send(signal.SIGCONT)

    def _kill_all(self) -> None:
        for process in [a.process for a in self._actors] + [s.process for s in self.sources if s.process]:
            if process.poll() is None:
                process.kill()
                process.wait()
