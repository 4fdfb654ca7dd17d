"""The worker: a long-running process that owns partitions, reads chunks, runs the bundle, commits.

    acquire leases -> read -> rows onto the belt -> run -> commit -> read ...

All state that matters is in Redis: what this process holds beyond its last commit, it may lose at any moment.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from pipeline import task as tasks
from pipeline.batcher import Batcher
from pipeline.belt import Belt
from pipeline.broker import lease as leases
from pipeline.broker import partition as partitions
from pipeline.broker import topic as topics
from pipeline.broker.connection import check_server, connect
from pipeline.broker.keys import Keys
from pipeline.broker.lease import Granted, Lease
from pipeline.broker.partition import Commit
from pipeline.broker.reader import Entry, read
from pipeline.broker.retention import trim
from pipeline.bundle import Bundle, load
from pipeline.errors import BrokerUnavailable, ConfigError, Fenced, RowCorrupt
from pipeline.logs import logger
from pipeline.manifest import InputSpec
from pipeline.settings import Settings
from pipeline.task import Effects, Task

_BACKOFF_S = (0.02, 1.0)


@dataclass
class _Owned:
    """A partition under our lease: its task, and where its log was last committed."""

    lease: Lease
    task: Task
    offset: bytes
    entries_read: int
    renewed_s: float
    corrupt: dict[str, str] = field(default_factory=dict)


class Worker:
    """Runs one bundle, as one group, on one topic.

    Args:
        settings: which, where and how.
        bundle: an opened bundle; by default the one that the settings name.
    Raises:
        ConfigError, ManifestError: refuse to start.

    Example:
        Worker(load_settings(url="redis://localhost", bundle="digits")).run()
    """

    def __init__(self, settings: Settings, *, bundle: Bundle | None = None) -> None:
        self.settings = settings
        self.bundle = bundle or load(settings.bundle)
        self.counts: Counter[str] = Counter()
        self.owner = leases.new_owner()
        self._batcher = Batcher(self.bundle, max_batch=settings.max_batch)
        self._belt = Belt(self._batcher.layout, settings.belt_rows)
        self._owned: dict[int, _Owned] = {}
        self._stopping = False  # a plain flag: an Event takes a lock, which a signal handler could find held
        self._client = connect(settings.redis_url)
        self._log = logger(topic=settings.topic, group=settings.group, owner=self.owner)
        self._next_acquire_s = self._next_trim_s = 0.0
        self._read_entries = settings.read_entries  # fewer while batches take too long for the lease

    def stop(self) -> None:
        """Ask `run` to finish its batch, commit, give its leases back and return. Safe in a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Work until `stop`. Waits for Redis where it is away; raises ConfigError where it will never do.

        At the start it waits only as long as a lease: a Redis that never was there is a mistake to be told.
        """
        self._open_within(self.settings.lease_ms / 1000)
        failures = 0
        try:
            while not self._stopping:
                try:
                    self._turn()
                    failures = 0
                except BrokerUnavailable as error:
                    self._log.warning("broker_unavailable", error=str(error), failures=failures)
                    self._drop_expired()
                    self._pause(_backoff_s(failures))
                    failures += 1
        finally:
            self._close()

    def _open_within(self, seconds: float) -> None:
        deadline_s, failures = time.monotonic() + seconds, 0
        while not self._stopping:
            try:
                self._open()
                return
            except BrokerUnavailable as error:
                if time.monotonic() >= deadline_s:
                    raise
                self._log.warning("broker_unavailable", error=str(error), failures=failures)
                self._pause(_backoff_s(failures))
                failures += 1

    def _open(self) -> None:
        s, spec = self.settings, self.bundle.manifest.input
        server = check_server(self._client)
        wanted = topics.Topic(s.topic, spec.sample_rate_hz, spec.sample_type, spec.channels, s.partitions)
        self._topic = topics.create(self._client, wanted, any_partitions=True)
        if s.belt_rows < max(s.read_entries, self._topic.partitions):
            raise ConfigError(
                f"belt_rows is {s.belt_rows}; it must hold every stream of one read: at least read_entries "
                f"({s.read_entries}) and the topic's partitions ({self._topic.partitions})"
            )
        self._log.info(
            "started",
            server=server,
            bundle=self.bundle.source,
            fingerprint=self.bundle.fingerprint.hex(),
            partitions=self._topic.partitions,
            row_bytes=self._belt.layout.row_bytes,
        )

    def _turn(self) -> None:
        self._keep_leases()
        lease_s = self.settings.lease_ms / 1000
        if not self._owned:
            self._pause(min(lease_s / 4, 0.25))
            return
        count = max(1, self._read_entries // len(self._owned))
        offsets = {p: owned.offset for p, owned in self._owned.items()}
        block_ms = int(min(lease_s / 4, 0.5) * 1000) or 1
        found = read(self._client, self.settings.topic, offsets, count, block_ms)
        if found:
            ran_s = self._process(found)
            self._size_reads(found, count, ran_s)
        if time.monotonic() >= self._next_trim_s:
            self._trim()

    # -- leases

    def _keep_leases(self) -> None:
        self._renew()
        now, lease_s = time.monotonic(), self.settings.lease_ms / 1000
        if now >= self._next_acquire_s and len(self._owned) < self._topic.partitions:
            self._acquire()
            self._next_acquire_s = now + min(lease_s / 4, 1.0)

    def _renew(self) -> None:
        now, lease_s = time.monotonic(), self.settings.lease_ms / 1000
        due = [owned for owned in self._owned.values() if now - owned.renewed_s > lease_s / 3]
        for owned, error in zip(due, leases.renew(self._client, [o.lease for o in due]), strict=True):
            if isinstance(error, Fenced):
                self._drop(owned, error)
            elif error is not None:
                raise error
            else:
                owned.renewed_s = now

    def _acquire(self) -> None:
        s = self.settings
        gained = []
        for partition in range(self._topic.partitions):
            if partition in self._owned:
                continue
            asked_s = time.monotonic()
            answer = leases.acquire(self._client, Keys(s.topic, s.group, partition), self.owner, s.lease_ms)
            if isinstance(answer, Granted):
                self._owned[partition] = self._own(partition, answer, asked_s)
                gained.append(partition)
        if gained:
            self._log.info("ready", gained=gained, owned=sorted(self._owned))

    def _own(self, partition: int, granted: Granted, asked_s: float) -> _Owned:
        task = Task(
            partition,
            self._topic.partitions,
            InputSpec(
                sample_rate_hz=self._topic.sample_rate_hz,
                channels=self._topic.channels,
                sample_type=self._topic.sample_type,
            ),
            self.settings.policy,
            publish=self.settings.publish,
            max_chunk_bytes=self.settings.max_chunk_bytes,
        )
        return _Owned(granted.lease, task, granted.offset, granted.entries_read, asked_s)

    def _drop(self, owned: _Owned, why: object) -> None:
        """Forget a partition at once: its rows may be ahead of what is committed."""
        partition = owned.lease.keys.partition
        self._owned.pop(partition, None)
        rows = self._belt.drop_partition(partition)
        self.counts["dropped_partitions"] += 1
        self._log.warning("partition_dropped", partition=partition, rows=rows, why=str(why))

    def _drop_expired(self) -> None:
        # Past the lease another worker may own the partition; nothing that is done here could be committed.
        now = time.monotonic()
        for owned in list(self._owned.values()):
            if now - owned.renewed_s > owned.lease.lease_ms / 1000:
                self._drop(owned, "the lease ran out while Redis was away")

    # -- a batch

    def _size_reads(self, found: dict[int, list[Entry]], count: int, ran_s: float) -> None:
        """A batch must be committed well within its lease: one that took too long is followed by smaller ones."""
        entries, aim_s = sum(map(len, found.values())), self.settings.lease_ms / 1000 / 4
        if ran_s > aim_s:
            self._read_entries = max(1, min(self._read_entries, int(entries * aim_s / ran_s)))
            self._log.warning("batch_too_long", entries=entries, ran_s=round(ran_s, 3), next=self._read_entries)
        elif ran_s < aim_s / 2 and any(len(of) >= count for of in found.values()):
            self._read_entries = min(self.settings.read_entries, 2 * self._read_entries)

    def _process(self, found: dict[int, list[Entry]]) -> float:
        """Run what was read and commit it. Returns how long the model ran, in seconds."""
        work = [self._owned[p] for p in sorted(found)]
        streams = [owned.task.take(found[owned.lease.keys.partition]) for owned in work]
        self._load_rows(work, streams)
        began_s = time.monotonic()
        tasks.run([owned.task for owned in work], self._belt, self._batcher)
        ran_s = time.monotonic() - began_s
        for owned in work:
            self._note_corrupt(owned)
        effects = [(owned, owned.task.effects(self._belt)) for owned in work]
        self._commit(effects)
        return ran_s

    def _load_rows(self, work: list[_Owned], streams: list[list[str]]) -> None:
        self._belt.begin([stream for names in streams for stream in names])
        missing = {owned.lease.keys: self._belt.missing(names) for owned, names in zip(work, streams, strict=True)}
        stored = partitions.load_rows(self._client, missing) if any(missing.values()) else {}
        for owned in work:
            keys = owned.lease.keys
            for stream, row in zip(missing[keys], stored.get(keys, []), strict=True):
                try:
                    self._belt.place(stream, keys.partition, row)
                except RowCorrupt as error:
                    self._belt.place(stream, keys.partition, None)
                    owned.corrupt[stream] = str(error)
                    self._log.warning("row_corrupt", partition=keys.partition, stream=stream, error=str(error))

    def _note_corrupt(self, owned: _Owned) -> None:
        """A row that was discarded is told with the first chunk that its stream takes afresh."""
        for chunk in owned.task.chunks if owned.corrupt else ():
            if chunk.stream in owned.corrupt and chunk.output is not None:
                chunk.notes.insert(0, {"kind": "row_corrupt", "why": owned.corrupt.pop(chunk.stream)})

    def _commit(self, effects: list[tuple[_Owned, Effects]]) -> None:
        """Commit every partition's effects; the same commit again while Redis is away and the lease may last."""
        pending = [(owned, _commit_of(owned, e)) for owned, e in effects]
        failures, why = 0, ""
        while pending:
            sent_s = time.monotonic()
            outcomes = partitions.commit_many(self._client, [(owned.lease, commit) for owned, commit in pending])
            again: list[tuple[_Owned, Commit]] = []
            for (owned, commit), outcome in zip(pending, outcomes, strict=True):
                if outcome.error is None:
                    owned.offset, owned.entries_read = commit.offset_after, commit.entries_read
                    owned.renewed_s = sent_s
                    self._count(owned)
                elif isinstance(outcome.error, BrokerUnavailable):
                    again.append((owned, commit))
                    why = str(outcome.error)
                elif isinstance(outcome.error, Fenced):
                    self._drop(owned, outcome.error)
                else:
                    raise outcome.error
            if not again:
                return
            self._log.warning("commit_retried", error=why, failures=failures)
            self._pause(min(_backoff_s(failures), self.settings.lease_ms / 4000))
            failures += 1
            if self._stopping:
                return  # whether they are stored is unknown, and need not be known: the next owner asks for the offset
            self._drop_expired()
            self._hold_on()
            pending = [pair for pair in again if pair[0].lease.keys.partition in self._owned]

    def _hold_on(self) -> None:
        """A server that is full takes no commit, but renews leases and trims logs: it may be trimming that it lacks."""
        try:
            self._renew()
            if time.monotonic() >= self._next_trim_s:
                self._trim()
        except BrokerUnavailable:
            pass  # it is away altogether: the leases say for how long it is worth waiting

    def _count(self, owned: _Owned) -> None:
        partition = owned.lease.keys.partition
        for happening in owned.task.happenings():
            self._log.warning(happening.kind, partition=partition, stream=happening.stream, **happening.facts)
        self.counts.update(owned.task.counts)
        owned.task.counts.clear()

    # -- upkeep

    def _trim(self) -> None:
        s = self.settings
        self._next_trim_s = time.monotonic() + s.trim_every_ms / 1000
        for owned in self._owned.values():
            partition = owned.lease.keys.partition
            trim(self._client, s.topic, partition, [s.group], s.input_retention_ms, s.results_retention_ms)
        self._log.debug("turned", belt_rows=len(self._belt), **self.counts)

    def _pause(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while not self._stopping and (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.05))

    def _close(self) -> None:
        try:
            leases.release(self._client, [owned.lease for owned in self._owned.values()])
        except BrokerUnavailable as error:
            self._log.warning("leases_not_released", error=str(error))
        self._owned.clear()
        self._client.close()
        self._log.info("stopped", **self.counts)


def _commit_of(owned: _Owned, effects: Effects) -> Commit:
    read_before = owned.entries_read
    return Commit(
        offset_before=owned.offset,
        offset_after=effects.offset,
        entries_read=read_before + effects.entries if read_before >= 0 else -1,
        results=effects.results,
        dead=effects.dead,
        rows=effects.rows,
    )


def _backoff_s(failures: int) -> float:
    first, last = _BACKOFF_S
    return min(last, first * 2.0 ** min(failures, 10))
