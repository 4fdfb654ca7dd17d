"""The worker: a long-running process that owns partitions, reads chunks, runs the bundle, commits.

    acquire leases -> read -> rows onto the belt -> run -> commit -> read ...

All state that matters is in Redis: what this process holds beyond its last commit, it may lose at any moment.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from pipeline import task as tasks
from pipeline.batcher import Batcher
from pipeline.belt import Belt
from pipeline.broker import lease as leases
from pipeline.broker import topic as topics
from pipeline.broker.connection import TIMEOUT_S, check_server, connect
from pipeline.broker.durability import check_durability
from pipeline.broker.failover import History
from pipeline.bundle import Bundle, load
from pipeline.committing import Committer, backoff_s
from pipeline.errors import BrokerUnavailable, ConfigError
from pipeline.frontend import COMPILED
from pipeline.intake import Found, Intake
from pipeline.lifecycle import Owned, Phase
from pipeline.logs import logger
from pipeline.manifest import InputSpec
from pipeline.ownership import Ownership
from pipeline.rows import Rows
from pipeline.settings import Settings
from pipeline.status import Reporter
from pipeline.task import Task
from pipeline.upkeep import Upkeep

_LEAST_TIMEOUT_S = 1.0
_IDLE_S = 1.0
_BELT_BYTES, _BELT_ROWS = 64 << 20, (4096, 65_536)


def _belt_rows(row_bytes: int, read_entries: int) -> int:
    """How many are kept where nobody says: a row that was forgotten has to be read again.

    >>> _belt_rows(3_800, 256), _belt_rows(100_000, 256), _belt_rows(100, 256)
    (17660, 4096, 65536)
    """
    least, most = _BELT_ROWS
    return max(min(_BELT_BYTES // row_bytes, most), least, read_entries)


class Worker:
    """Runs one bundle, as one group, on one topic, beside any number of others that do the same.

    Args:
        settings: which, where and how.
        bundle: an opened bundle; by default the one that the settings name.
    Raises:
        ConfigError, ManifestError: refuse to start.

    Example:
        Worker(load_settings(url="redis://localhost", bundle="digits")).run()
    """

    def __init__(self, settings: Settings, *, bundle: Bundle | None = None) -> None:
        if not isinstance(settings, Settings):
            raise ConfigError(
                f"Worker was given {type(settings).__name__} ({str(settings)[:80]!r}); expected settings: "
                'Worker(load_settings(bundle="digits"))'
            )
        self.settings = settings
        self.bundle = bundle or load(settings.bundle)
        self.counts: Counter[str] = Counter()
        self.owner = leases.new_owner()
        self._arithmetic = self.bundle.arithmetic()
        self._batcher = Batcher(self.bundle, max_batch=settings.max_batch)
        rows = settings.belt_rows or _belt_rows(self._batcher.layout.row_bytes, settings.read_entries)
        self._belt = Belt(self._batcher.layout, rows)
        self._ownership: Ownership | None = None
        self._stopping = False  # a plain flag: an Event takes a lock, which a signal handler could find held
        self._deadline_s: float | None = None
        # An answer that comes later than the lease lasts is of no use.
        timeout_s = min(TIMEOUT_S, max(_LEAST_TIMEOUT_S, settings.lease_ms / 1000))
        self._history = History()
        self._client = connect(settings.redis_url, timeout_s, history=self._history, busy=True)
        self._log = logger(topic=settings.topic, group=settings.group, owner=self.owner)
        self._reporter = Reporter(
            settings.status_folder,
            settings.redis_url,
            self.owner,
            settings.topic,
            settings.group,
            lease_ms=settings.lease_ms,
            read_entries=settings.read_entries,
        )
        self._committer = Committer(
            self._client, settings, self.counts, self._log, late=self._late, wait=self._wait, away=self._away
        )
        self._intake = Intake(self._client, settings, self._log)
        self._rows = Rows(self._client, settings, self._belt, self._batcher, self._committer, self._intake, self._log)
        self._upkeep = Upkeep(self._client, settings)
        self._busy_s = 0.0

    def stop(self) -> None:
        """Ask `run` to commit what it has in hand, give its leases back and return, within `drain_ms`. Safe in a
        signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Work until `stop`. Waits for Redis where it is away; raises ConfigError where it will never do.

        At the start it waits only as long as a lease: a Redis that never was there is a mistake to be told.
        """
        self._report("starting")
        clean = False
        try:
            ownership = self._open_within(self.settings.lease_ms / 1000)
            failures = 0
            while ownership is not None and not self._stopping:
                try:
                    self._turn(ownership)
                    if failures:
                        self._log.info("broker_available", failures=failures)
                    failures = 0
                except BrokerUnavailable as error:
                    self._log.warning("broker_unavailable", error=str(error), failures=failures)
                    self._let_go(ownership)
                    self._report("running", f"Redis is away: {error}")
                    self._pause(backoff_s(failures))
                    failures += 1
            clean = True
        finally:
            self._close(clean)

    @property
    def owned(self) -> dict[int, Owned]:
        """The partitions that this worker holds now."""
        return {} if self._ownership is None else self._ownership.owned

    def _open_within(self, seconds: float) -> Ownership | None:
        deadline_s, failures = time.monotonic() + seconds, 0
        while not self._stopping:
            try:
                self._ownership = self._open()
                self._ownership.introduce(self._pause)
                return self._ownership
            except BrokerUnavailable as error:
                if time.monotonic() >= deadline_s:
                    raise
                self._history.accept()  # nothing was read yet
                self._log.warning("broker_unavailable", error=str(error), failures=failures)
                self._report("starting", f"Redis is away: {error}")
                self._pause(backoff_s(failures))
                failures += 1
        return None

    def _open(self) -> Ownership:
        s, spec = self.settings, self.bundle.manifest.input
        server = check_server(self._client)
        for warning in check_durability(self._client, s.durability):
            self._log.warning("durability", level=s.durability, warning=warning)
        rate_hz = spec.sample_rate_hz
        if spec.any_rate and (there := topics.describe(self._client, s.topic)):
            rate_hz = there.sample_rate_hz
        wanted = topics.Topic(s.topic, rate_hz, spec.sample_type, spec.channels, s.partitions)
        self._topic = topics.create(self._client, wanted, any_partitions=True)
        self._batcher.rate_hz = rate_hz
        if self._belt.capacity < max(s.read_entries, self._topic.partitions):
            raise ConfigError(
                f"belt_rows is {self._belt.capacity}; it must hold every stream of one read: at least read_entries "
                f"({s.read_entries}) and the topic's partitions ({self._topic.partitions})"
            )
        self._log.info(
            "started",
            server=server,
            durability=s.durability,
            compiled_spectra=COMPILED,
            bundle=self.bundle.source,
            fingerprint=self.bundle.fingerprint.hex(),
            arithmetic=self._arithmetic,
            partitions=self._topic.partitions,
            row_bytes=self._belt.layout.row_bytes,
        )
        if 2000 / rate_hz > s.idle_ms:  # a live stream would expire from one sample to the next
            hint = "streams expire between two samples: raise idle_ms, for producers too"
            self._log.warning("idle", idle_ms=s.idle_ms, sample_ms=round(1000 / rate_hz), hint=hint)
        if self.bundle.manifest.model.tolerance:
            self._log.warning("inexact", tolerance=self.bundle.manifest.model.tolerance)
        return Ownership(
            self._client,
            s.topic,
            s.group,
            self.owner,
            partitions=self._topic.partitions,
            lease_ms=s.lease_ms,
            fingerprint=self.bundle.fingerprint.hex(),
            arithmetic=self._arithmetic,
            counts=self.counts,
            make_task=self._make_task,
            forget=self._belt.drop_partition,
            catch_up=self._catch_up,
        )

    def _make_task(self, partition: int) -> Task:
        return Task(
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
            given_bytes=self.bundle.manifest.model.given_bytes,
            row_every_chunks=self.settings.row_every_chunks,
        )

    def _turn(self, ownership: Ownership) -> None:
        waits = self._idle or not ownership.owned  # nobody, then, waits for an answer that it waits for
        if waits or self._late_ones(ownership) or ownership.look():
            self._committer.settle(ownership)
            ownership.keep()
        elif not self._intake.follows():
            self._committer.settle(ownership)
        if self._reporter.due():
            self._tell(ownership)
        if not ownership.owned:
            self._upkeep.forget()
            self._intake.forget()
            self._pause(ownership.beat_s)
            return
        if not self._belt.room_for(max(self._intake.entries, self._intake.in_hand, len(ownership.owned))):
            self._catch_up(list(ownership.owned.values()))
        if not ownership.owned:
            return
        late = self._late_ones(ownership)
        if late:
            self._rows.replay(ownership, late)
            if not ownership.owned:
                return
        block_ms = 0 if late else max(1, int(ownership.beat_s * 1000))
        found = self._intake.next(ownership.owned, block_ms)
        if found:
            self._process(ownership, found)
            self._busy_s = time.monotonic()
        elif self._idle:
            self._catch_up(list(ownership.owned.values()))
        self._upkeep.trim(ownership.owned)

    @property
    def _idle(self) -> bool:
        return time.monotonic() - self._busy_s > _IDLE_S

    @staticmethod
    def _late_ones(ownership: Ownership) -> list[Owned]:
        return [owned for owned in ownership.owned.values() if owned.behind]

    def _room_to_fly(self) -> bool:
        """Whether the belt holds a batch whose commit is on its way, the one that follows it, and rows to forget."""
        return self._belt.room_for(3 * self._intake.entries)

    # -- a batch

    def _process(self, ownership: Ownership, found: Found) -> None:
        """Run what was read and commit it. Where there is more to run by then, or may be, that is not waited for."""
        work = [ownership.owned[p] for p in sorted(found)]
        for owned in work:
            if owned.phase is Phase.GRANTED:
                owned.to(Phase.RUNNING)
        streams = [owned.task.take(found[owned.partition]) for owned in work]
        self._rows.load(work, streams)
        size_bytes = sum([owned.task.size_bytes for owned in work])
        flies = self._room_to_fly() and not self._stopping
        if flies and self._intake.more_waits(found, size_bytes):
            self._intake.ask(ownership.owned, found, size_bytes, fetch=True)
        began_s = time.monotonic()
        ran = tasks.run([owned.task for owned in work], self._belt, self._batcher)
        self._intake.size(found, size_bytes, time.monotonic() - began_s)
        self._committer.settle(ownership)  # the batch before this one; what it lost was lost to this one as well
        # One whose commit is still in doubt is out of time: its lease ends, or the worker does.
        work = [o for o in work if ownership.owned.get(o.partition) is o and o.phase is Phase.RUNNING]
        if not work:
            return
        for owned in work:
            self._rows.note_corrupt(owned)
        flies = flies and not self._stopping
        if flies:
            self._intake.ask(ownership.owned, found, size_bytes)
        effects = list(zip(work, tasks.effects([owned.task for owned in work], self._belt, ran), strict=True))
        if self._intake.collect() or (flies and self._intake.ask_beside(ownership.owned, found, size_bytes)):
            self._committer.begin(ownership, effects)
        else:
            reading = None if self._stopping else self._intake.with_commit(ownership.owned, found)
            self._committer.commit(ownership, effects, reading)
            self._intake.answered(reading)

    def _catch_up(self, of: Sequence[Owned]) -> None:
        assert self._ownership is not None
        self._rows.catch_up(self._ownership, of)

    def _away(self, why: str) -> None:
        """A commit waits for Redis: meanwhile say so, and keep what can be kept."""
        assert self._ownership is not None
        self._report("draining" if self._stopping else "running", why)
        self._let_go(self._ownership)
        self._hold_on(self._ownership)

    def _let_go(self, ownership: Ownership) -> None:
        """Redis does not answer, or another one does: drop what another worker may own by now, or what was read of a
        server that is not the one that answers."""
        ownership.forget()
        self._upkeep.forget()
        ownership.drop_expired()
        if self._history.changed:
            self._committer.abandon()
            self._intake.forget()
            ownership.drop_all("the server started anew, or another took over from it")
            self._history.accept()

    def _hold_on(self, ownership: Ownership) -> None:
        """A server that is full takes no commit, but renews leases and trims logs: it may be trimming that it lacks."""
        try:
            ownership.renew()
            self._upkeep.trim_all(ownership.owned)
        except BrokerUnavailable:
            pass  # it is away altogether: the leases say for how long it is worth waiting

    # -- upkeep

    def _tell(self, ownership: Ownership) -> None:
        """Tell probes that all is well, and the lag."""
        held = [owned.lease.keys for owned in ownership.owned.values()]
        self._report("running", lag=self._upkeep.lag(held) if held else 0)
        self._log.debug("turned", belt_rows=len(self._belt), **self.counts)

    def _report(self, phase: str, trouble: str = "", lag: int = 0) -> None:
        """Tell probes how it goes."""
        if not self._reporter.due() and phase == "running":
            return
        owned = self.owned
        told = self._reporter.error
        share = 0 if self._ownership is None else self._ownership.share
        self._reporter.tell(phase, len(owned), share, lag, trouble)
        if self._reporter.error != told and self._reporter.error:
            self._log.warning("status_not_written", error=self._reporter.error)

    def _late(self) -> bool:
        """Was this worker told to stop, and has the time for it run out?"""
        if not self._stopping:
            return False
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + self.settings.drain_ms / 1000
        return time.monotonic() >= self._deadline_s

    def _wait(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while not self._late() and (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.05))

    def _pause(self, seconds: float) -> bool:
        """Wait, unless told to stop. Returns whether to go on."""
        until_s = time.monotonic() + seconds
        while not self._stopping and (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.05))
        return not self._stopping

    def _close(self, clean: bool) -> None:
        self._report("draining")
        if self._ownership is not None:
            try:
                self._settle_and_leave(self._ownership, clean)
            except BrokerUnavailable as error:
                self._log.warning("leases_not_released", error=str(error))
        self._intake.close()
        self._upkeep.forget()
        self._client.close()
        self._reporter.clear()
        self._log.info("stopped", **self.counts)

    def _settle_and_leave(self, ownership: Ownership, clean: bool) -> None:
        try:
            self._committer.settle(ownership)
            ownership.close(catch_up=clean)
        except BrokerUnavailable:
            if not self._history.changed:
                raise
            self._let_go(ownership)  # the new primary is met for the first time: of it, too, leases are held
            ownership.close(catch_up=False)
