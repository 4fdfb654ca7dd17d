"""The partitions that a worker holds: taking its even share, keeping the leases, giving back what is over.

Ownership comes from leases alone, granted by the server under an epoch; the register of workers only says how many
there are to share with. No worker waits for another, and partitions that do not move never pause.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence

from pipeline.broker import lease as leases
from pipeline.broker import members
from pipeline.broker.connection import Client
from pipeline.broker.keys import Keys
from pipeline.broker.later import Later
from pipeline.broker.lease import Granted, Lease
from pipeline.broker.members import Member
from pipeline.errors import BrokerUnavailable, ConfigError, Fenced
from pipeline.lifecycle import Owned, Phase
from pipeline.logs import logger
from pipeline.share import shares
from pipeline.task import Task

_BEAT_S = 0.25
_SHORT_S = 0.05


class Ownership:
    """One worker's partitions.

    Args:
        partitions: of the topic.
        fingerprint, arithmetic: of the bundle, and of what this machine makes of it (`members.Member`).
        counts: where `dropped_partitions` are counted.
        make_task: a fresh task for a partition.
        forget: called with a partition that is held no longer; returns how many rows it had on the belt.
        catch_up: called with partitions that are about to be given back, to store what their rows lack.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        group: str,
        owner: str,
        *,
        partitions: int,
        lease_ms: int,
        fingerprint: str,
        arithmetic: str,
        counts: Counter[str],
        make_task: Callable[[int], Task],
        forget: Callable[[int], int],
        catch_up: Callable[[Sequence[Owned]], None],
    ) -> None:
        self.owned: dict[int, Owned] = {}
        self.share = 0
        self._client = client
        self._keys = [Keys(topic, group, partition) for partition in range(partitions)]
        self._topic, self._group, self._owner = topic, group, owner
        self._lease_ms, self._counts = lease_ms, counts
        self._fingerprint, self._arithmetic = fingerprint, arithmetic
        self._make_task, self._forget, self._catch_up = make_task, forget, catch_up
        self._log = logger(topic=topic, group=group, owner=owner)
        self._next_beat_s = 0.0
        self._unreleased: list[Lease] = []
        self._unlike: set[str] = set()
        self._joining: Later[list[Member]] | None = None
        self._living: Sequence[Member] = ()  # of whom `look` found that something is to be done

    def introduce(self, pause: Callable[[float], bool]) -> None:
        """Join the group; `pause` waits for so many seconds and says whether to go on.

        Raises ConfigError when a worker with another bundle lives in it, and still does when the time of a killed one
        would have ended: two bundles under one group would discard each other's state for ever.
        """
        deadline_s, told = time.monotonic() + self._lease_ms / 1000 + _BEAT_S, False
        while True:
            # First without joining: who lives would make room for one that must not start.
            others = self._strangers(members.look(self._client, self._topic, self._group))
            if not others:
                others = self._strangers(self._joined())
                if not others:
                    return
                self._leave()  # both began at the same moment
            if time.monotonic() > deadline_s:
                raise self._refusal(others[0])
            if not told:
                self._log.warning("waits", why="another bundle runs this group", worker=others[0].owner)
                told = True
            if not pause(_BEAT_S):
                return

    def _strangers(self, found: Sequence[Member]) -> list[Member]:
        return [member for member in found if member.fingerprint != self._fingerprint]

    def keep(self) -> None:
        """Renew what is due, and come closer to an even share. Raises BrokerUnavailable: try again."""
        self.renew()
        if time.monotonic() >= self._next_beat_s:
            living, self._living = self._living or self._joined(), ()
            self._beaten(short=self._balance(living))

    def look(self) -> bool:
        """Whether `keep` has something to do, as far as is known without waiting for Redis: who lives is asked, and
        answered in a later call. For who has work to do. Raises BrokerUnavailable: try again."""
        if self._worn() or self._living:
            return True
        if time.monotonic() < self._next_beat_s:
            return False
        if self._joining is None:
            self._joining = self._join()
            return False
        joining, self._joining = self._joining, None
        if not joining.ready():
            self._joining = joining
            return False
        living = joining.answer()
        if self._over(living):
            self._living = living
            return True
        self._beaten(short=False)
        return False

    def _beaten(self, *, short: bool) -> None:
        self._next_beat_s = time.monotonic() + (_SHORT_S if short else self._pause_s)

    @property
    def _pause_s(self) -> float:
        return min(self._lease_ms / 4000, _BEAT_S)

    def forget(self) -> None:
        """Let go of what was asked for."""
        joining, self._joining, self._living = self._joining, None, ()
        if joining is not None:
            joining.drop()

    def _worn(self) -> list[Owned]:
        now = time.monotonic()
        return [owned for owned in self.owned.values() if now - owned.renewed_s > self._lease_ms / 3000]

    @property
    def beat_s(self) -> float:
        """How long until `keep` or `look` has something to do, in seconds: reads must not block for longer."""
        if self._joining is not None:
            return min(self._pause_s, _SHORT_S)
        return max(0.001, self._next_beat_s - time.monotonic())

    def renew(self) -> None:
        """Renew the leases that have lasted for a third of their time; drop what is not as it was left."""
        now, due = time.monotonic(), self._worn()
        if not due:
            return
        held = [(owned.lease, owned.settled_at) for owned in due]
        for owned, error in zip(due, leases.renew(self._client, held), strict=True):
            if isinstance(error, Fenced):
                self.drop(owned, error)
            elif error is not None:
                raise error
            else:
                owned.renewed_s = now

    def drop(self, owned: Owned, why: object) -> None:
        """Forget a partition at once: its rows may be ahead of what is committed."""
        rows = self._dropped(owned)
        self._log.warning("partition_dropped", partition=owned.partition, rows=rows, why=str(why))

    def drop_all(self, why: str) -> None:
        """Forget everything; what is still this owner's by its leases is taken anew."""
        self.forget()
        held = list(self.owned.values())
        self._unreleased += [owned.lease for owned in held]
        rows = sum(map(self._dropped, held))
        self._next_beat_s = 0.0
        self._log.warning("partitions_dropped", partitions=[o.partition for o in held], rows=rows, why=why)

    def _dropped(self, owned: Owned) -> int:
        owned.to(Phase.FENCED)
        self.owned.pop(owned.partition, None)
        self._counts["dropped_partitions"] += 1
        return self._forget(owned.partition)

    def drop_expired(self) -> None:
        """Drop what another may own by now: nothing that is done there could be committed."""
        now = time.monotonic()
        for owned in list(self.owned.values()):
            if now - owned.renewed_s > self._lease_ms / 1000:
                self.drop(owned, "the lease ran out while Redis was away")

    def close(self, *, catch_up: bool) -> None:
        """Give everything back and leave the group. Raises BrokerUnavailable: the leases end by themselves.

        catch_up: store what rows lack; not where a batch was broken off, for they may hold what was never published.
        """
        if self._joining is not None:  # should it be done after `leave`, this worker would be counted among the living
            with contextlib.suppress(BrokerUnavailable):
                self._joined()
        self.forget()
        given = list(self.owned.values())
        if catch_up:
            self._catch_up(given)
        self._give_back(given)
        if self._unreleased:  # what is another's by now stays so: its epoch is another
            leases.release(self._client, self._unreleased)
        self._leave()

    def _join(self) -> Later[list[Member]]:
        me = Member(self._owner, len(self.owned), self._fingerprint, self._arithmetic)
        return members.joining(self._client, self._topic, self._group, me, self._lease_ms)

    def _joined(self) -> list[Member]:
        joining, self._joining = self._joining or self._join(), None
        return joining.answer()

    def _leave(self) -> None:
        members.leave(self._client, self._topic, self._group, self._owner)

    def _over(self, living: Sequence[Member]) -> int:
        """By how many partitions this worker holds more than its share, or less."""
        self._give_way(self._strangers(living))
        self._compare(living)
        self.share = shares(self._held(living), len(self._keys))[self._owner]
        return len(self.owned) - self.share

    def _held(self, living: Sequence[Member]) -> dict[str, int]:
        held = {m.owner: m.held for m in living if m.fingerprint == self._fingerprint}
        return held | {self._owner: len(self.owned)}

    def _balance(self, living: Sequence[Member]) -> bool:
        """Give back, or take. True where this worker still holds less than its share."""
        over = self._over(living)
        if over > 0:  # the youngest: the fewest of its rows are on the belt
            given = list(self.owned.values())[-over:]
            self._catch_up(given)
            self._give_back(given)
            self._log.info("gave_back", partitions=[o.partition for o in given], owned=sorted(self.owned))
        elif over < 0:
            self._take(-over, sorted(self._held(living)).index(self._owner))
        return len(self.owned) < self.share

    def _give_way(self, strangers: Sequence[Member]) -> None:
        """Of two bundles that both hold partitions, one must go: a worker that was frozen finds, when it wakes, that
        its group was given to another bundle. The one with less is the late one. Raises ConfigError."""
        working = [(m.held, m.owner) for m in strangers if m.held]
        if working and (len(self.owned), self._owner) < max(working):
            raise self._refusal(max(strangers, key=lambda m: (m.held, m.owner)))

    def _compare(self, living: Sequence[Member]) -> None:
        """Tell of those that compute a little differently, each once: a stream that moves between them and this worker
        is right, but its last bits are neither's alone."""
        unlike = {member.owner: member for member in living if member.arithmetic != self._arithmetic}
        for owner in unlike.keys() - self._unlike:
            self._log.warning(
                "mixed_arithmetic",
                worker=owner,
                theirs=unlike[owner].arithmetic,
                ours=self._arithmetic,
                hint="streams that move between the two differ in last bits from a run on either: give workers of "
                "a group the same kind of processor, onnxruntime and installation (started: compiled_spectra)",
            )
        self._unlike = set(unlike)

    def _refusal(self, other: Member) -> ConfigError:
        return ConfigError(
            f"group {self._group!r} on topic {self._topic!r} is run by {other.owner} with another bundle "
            f"({other.fingerprint}, this one is {self._fingerprint}): give this one a --group of its own, "
            "or stop the others first"
        )

    def _take(self, count: int, rank: int) -> None:
        wanted = [keys for keys in self._keys if keys.partition not in self.owned]
        holders = leases.holders(self._client, wanted)
        free = [keys for keys, holder in zip(wanted, holders, strict=True) if holder in (None, self._owner)]
        # Newcomers that look at the same moment begin at different places.
        start = rank * count % len(free) if free else 0
        free = (free[start:] + free[:start])[:count]
        if not free:
            return
        asked_s, gained = time.monotonic(), []
        for answer in leases.acquire_many(self._client, free, self._owner, self._lease_ms):
            if isinstance(answer, Granted):
                partition = answer.lease.keys.partition
                task = self._make_task(partition)
                behind = answer.behind
                self.owned[partition] = Owned(answer.lease, task, answer.offset, asked_s, behind=behind, rows_at=behind)
                gained.append(partition)
        if gained:
            self._unreleased = [x for x in self._unreleased if x.keys.partition not in self.owned]
            self._log.info("ready", gained=gained, owned=sorted(self.owned), share=self.share)

    def _give_back(self, given: Sequence[Owned]) -> None:
        given = [owned for owned in given if self.owned.get(owned.partition) is owned]  # else it was found fenced
        for owned in given:
            owned.to(Phase.DRAINING)
            del self.owned[owned.partition]
            self._forget(owned.partition)
        unknown: BrokerUnavailable | None = None
        for owned, error in zip(given, leases.release(self._client, [o.lease for o in given]), strict=True):
            owned.to(Phase.FENCED if isinstance(error, Fenced) else Phase.CLOSED)
            if isinstance(error, BrokerUnavailable):  # the lease ends by itself
                self._unreleased.append(owned.lease)
                unknown = error
        if unknown is not None:
            raise unknown
