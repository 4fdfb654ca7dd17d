"""The rules of `test_lease_machine.py`: what three workers and a server do, and a model beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.broker import functions
from pipeline.broker.connection import connect
from pipeline.broker.keys import Keys
from pipeline.broker.lease import Held, Lease, acquire, release, renew
from pipeline.broker.partition import Commit, commit, load_rows
from pipeline.broker.retention import marks_key, trim
from pipeline.errors import BrokerUnavailable, Fenced
from tests.harness import until

from .helpers import everything
from .proxy import Proxy

LEASE_MS, WORN_MS, ROW_TTL_MS = 60_000, 30_000, 600_000
AGES_MS = 3_600_000_000
STORED, DUPLICATE, REFUSED = "stored", "duplicate", "refused"


@dataclass
class Model:
    """A partition as one group sees it. Chunks are numbers; chunk n has the id n-0."""

    log: list[int] = field(default_factory=list)
    last: int = 0  # number of the last chunk ever pushed
    owner: str | None = None
    epoch: int = 0
    offset: int = 0
    results: list[int] = field(default_factory=list)  # chunks, as published
    rows: dict[str, bytes] = field(default_factory=dict)

    def acquire(self, who: str) -> bool:
        if self.owner is None:
            self.owner, self.epoch = who, self.epoch + 1
        return self.owner == who

    def holds(self, lease: Lease) -> bool:
        return (lease.owner, lease.epoch) == (self.owner, self.epoch)

    def commit(self, lease: Lease, act: Commit) -> str:
        before, after = number(act.offset_before), number(act.offset_after)
        if self.holds(lease) and self.offset == after != before:
            return DUPLICATE
        lost = after > self.last or (bool(self.log) and after >= self.log[0] and after not in self.log)
        if not self.holds(lease) or self.offset != before or lost:
            return REFUSED
        self.offset = after
        self.results += sorted(number(id_) for id_, _ in [*act.results, *act.dead])
        self.rows.update({stream: row for stream, row, _ in act.rows})
        return STORED


def number(id_: bytes) -> int:
    return int(id_.split(b"-")[0])


def id_of(n: int) -> bytes:
    return b"%d-0" % n


def stream_of(n: int) -> str:
    return f"s{n % 3}"


def is_dead(n: int) -> bool:
    return n % 5 == 0


@dataclass
class View:
    """What a worker believes: its lease, where it stands, and the work that it has in hand.

    stale: it read that work, and the rows, after its lease was over.
    """

    lease: Lease
    offset: bytes
    hand: Commit | None = None
    stale: bool = False


workers = st.sampled_from("abc")
pick = st.integers(0, 5)
"""One of those who can, so that few steps are spent on nothing."""


def someone(can: Callable[[LeaseMachine], Sequence[Any]]) -> Any:
    """The rule needs one who can."""
    return precondition(lambda machine: bool(can(machine)))


class LeaseMachine(RuleBasedStateMachine):
    """The rules are what can happen; `settled` is what must hold after each."""

    def __init__(self, client: redis.Redis, keys: Keys, proxy: Proxy) -> None:
        super().__init__()
        client.flushall()
        self.client, self.keys, self.proxy = client, keys, proxy
        self.model = Model()
        self.views: dict[str, View] = {}
        self.sent: list[tuple[Lease, Commit]] = []
        self.next = 1
        self.replica: tuple[list[tuple[bytes, int, bytes]], dict[str, Any]] | None = None
        # How far results were trimmed, whether the group exists, whether the lease was renewed since time passed,
        # and which chunks were dropped before anyone had read them.
        self.aside: dict[str, Any] = {"trimmed": 0, "group": False, "fresh": False, "dropped": set()}

    # -- what happens to the partition

    @rule(count=st.integers(1, 5), gap=st.integers(1, 3))
    def push(self, count: int, gap: int) -> None:
        for _ in range(count):
            self.next += gap  # no number twice, not even after a failover
            self.client.xadd(self.keys.log, {"stream": stream_of(self.next), "seq": "0", "data": ""}, id_of(self.next))
            self.model.log.append(self.next)
        self.model.last = self.next

    @rule(results=st.booleans())
    def trim(self, results: bool) -> None:
        trim(self.client, self.keys.topic, self.keys.partition, [self.keys.group], 0, 0 if results else AGES_MS)
        if self.aside["group"]:
            self.model.log = [n for n in self.model.log if n >= self.model.offset]
        if results:  # how many go is the affair of test_retention: here, that they go from the beginning
            left = {number(id_) for key in (self.keys.out, self.keys.dead) for id_, _ in self.client.xrange(key)}
            self.aside["trimmed"] = sum(n < min(left, default=self.next + 1) for n in self.model.results)

    @rule(count=st.integers(1, 4))
    def drop_oldest(self, count: int) -> None:
        """What a full log may do: chunks vanish whether they were read or not."""
        kept = self.model.log[count:]
        self.client.xtrim(self.keys.log, maxlen=len(kept), approximate=False)
        self.aside["dropped"] |= {n for n in self.model.log[:count] if n > self.model.offset}
        self.model.log = kept

    @rule()
    def replicate(self) -> None:
        """A replica has all up to here."""
        stored = [(key, max(self.client.pttl(key), 0), self.client.dump(key)) for key in self.client.keys("*")]
        self.replica = stored, deepcopy({"model": self.model, "aside": self.aside})

    @precondition(lambda self: self.replica is not None)
    @rule()
    def fail_over(self) -> None:
        """The replica takes over: everything since then is gone, and no worker was told.

        So are packets on their way: a connection ends with its server. What a worker has in hand it may send again,
        unless it was read when the lease was over. (Its rows may be another owner's, and here the lease may be in force
        again, for this replica keeps how long it has to run. A real one keeps when it ends.)
        """
        assert self.replica is not None
        self.sent.clear()
        for view in self._busy():
            view.hand = None if view.stale else view.hand
        self.client.flushall()
        for key, ttl_ms, value in self.replica[0]:
            self.client.restore(key, ttl_ms, value)
        kept = deepcopy(self.replica[1])
        # The replica may still have what was dropped unread; work that was read since then lacks it.
        kept["aside"]["dropped"] |= self.aside["dropped"]
        self.model, self.aside = kept["model"], kept["aside"]

    # -- leases

    @rule(who=workers)
    def acquire(self, who: str) -> None:
        before, held_by = everything(self.client), self.model.owner
        answer = acquire(self.client, self.keys, who, LEASE_MS)
        granted = self.model.acquire(who)
        if isinstance(answer, Held):
            assert not granted
            assert (answer.owner, answer.epoch) == (held_by, self.model.epoch)
            assert everything(self.client) == before
            return
        assert granted
        assert (answer.lease.epoch, number(answer.offset)) == (self.model.epoch, self.model.offset)
        self.views[who] = View(answer.lease, answer.offset)
        self.aside.update(group=True, fresh=True)

    def _all(self) -> list[View]:
        return list(self.views.values())

    def _holders(self) -> list[View]:
        return [view for view in self._all() if self.model.holds(view.lease)]

    def _busy(self) -> list[View]:
        return [view for view in self._all() if view.hand is not None]

    @someone(_all)
    @rule(one=pick, in_doubt=st.booleans())
    def renew(self, one: int, in_doubt: bool) -> None:
        """Who knows where it left the group says so, and learns when a failover has moved it."""
        self._renew(self._all()[one % len(self.views)], in_doubt)

    def _renew(self, view: View, in_doubt: bool = False) -> None:
        offset = b"" if in_doubt else view.offset
        as_left = in_doubt or number(offset) == self.model.offset
        if self._of_lease(view, lambda client, _: renew(client, [(view.lease, offset)]), as_left):
            self.aside["fresh"] = True
        elif not as_left:
            del self.views[view.lease.owner]

    @someone(_all)
    @rule(one=pick)
    def release(self, one: int) -> None:
        if self._of_lease(self._all()[one % len(self.views)], release):
            self.model.owner = None

    def _of_lease(self, view: View, act: Any, as_left: bool = True) -> bool:
        before = everything(self.client)
        [error] = act(self.client, [view.lease])
        if self.model.holds(view.lease) and as_left:
            assert error is None
            return True
        assert isinstance(error, Fenced)
        assert everything(self.client) == before
        return False

    @rule()
    def time_passes(self) -> None:
        """Half a lease."""
        if self.client.pexpire(self.keys.lease, WORN_MS):
            self.aside["fresh"] = False

    @precondition(lambda self: self.model.owner is not None)
    @rule(at_once=st.booleans())
    def expire(self, at_once: bool) -> None:
        """The lease's time is over; its owner sleeps, and does not know."""
        if at_once:
            self.client.delete(self.keys.lease)
        else:
            self.client.pexpire(self.keys.lease, 1)
            until(lambda: not self.client.exists(self.keys.lease), "the lease to run out")
        self.model.owner = None

    # -- work

    def _readers(self) -> list[View]:
        return [view for view in self._all() if self.model.log and self.model.log[-1] > number(view.offset)]

    @someone(_readers)
    @rule(one=pick, count=st.integers(1, 6))
    def read(self, one: int, count: int) -> None:
        self._take(self._readers()[one % len(self._readers())], count)

    def _take(self, view: View, count: int) -> None:
        """The next chunks are in hand: what they yield is made of the rows that are there now."""
        view.stale = not self.model.holds(view.lease)
        found = [number(id_) for id_, _ in self.client.xrange(self.keys.log, b"(" + view.offset, count=count)]
        streams = sorted({stream_of(n) for n in found})
        stored = load_rows(self.client, {self.keys: streams})[self.keys]
        rows = dict(zip(streams, (row or b"" for row in stored), strict=True))
        for n in found:
            rows[stream_of(n)] += b"%d " % n
        view.hand = Commit(
            view.offset,
            id_of(found[-1]),
            len(found),
            results=[(id_of(n), {b"chunk": b"%d" % n}) for n in found if not is_dead(n)],
            dead=[(id_of(n), {b"chunk": b"%d" % n}) for n in found if is_dead(n)],
            rows=[(stream, row, ROW_TTL_MS) for stream, row in rows.items()],
        )

    @someone(_busy)
    @rule(one=pick)
    def commit(self, one: int) -> None:
        view = self._busy()[one % len(self._busy())]
        assert view.hand is not None
        self._deliver(view.lease, view.hand)

    @someone(_busy)
    @rule(one=pick, later=st.booleans())
    def commit_and_lose_the_reply(self, one: int, later: bool) -> None:
        """Executed (or refused) without a word; then sent again, as the worker does."""
        view = self._busy()[one % len(self._busy())]
        assert view.hand is not None
        with connect(self.proxy.url) as through:
            through.ping()
            functions.load(through)
            self.proxy.lose_reply()
            with pytest.raises(BrokerUnavailable):
                commit(through, view.lease, view.hand)
            assert self.proxy.lost.is_set()
        first = self.model.commit(view.lease, view.hand)
        self.aside["fresh"] |= first != REFUSED
        if later:
            self.time_passes()
        second = self._deliver(view.lease, view.hand)
        assert (first, second) in {(STORED, DUPLICATE), (DUPLICATE, DUPLICATE), (REFUSED, REFUSED)}

    @precondition(lambda self: self.sent)
    @rule(back=st.integers(1, 4), later=st.booleans())
    def an_old_packet_arrives(self, back: int, later: bool) -> None:
        if later:
            self.time_passes()
        self._deliver(*self.sent[-min(back, len(self.sent))])

    @rule(who=workers, count=st.integers(1, 6))
    def turn(self, who: str, count: int) -> None:
        """A worker as it should be: it asks for the lease, and has it or not."""
        self.acquire(who)
        for view in self._reading_holders():
            if view.lease.owner == who:
                self._take(view, count)
                assert view.hand is not None
                assert self._deliver(view.lease, view.hand) == STORED

    @rule(who=workers, count=st.integers(1, 6))
    def push_and_turn(self, who: str, count: int) -> None:
        self.push(count, 1)
        self.turn(who, count)

    @someone(_busy)
    @rule(one=pick, step=st.sampled_from([-1, 1]))
    def commit_under_another_epoch(self, one: int, step: int) -> None:
        view = self._busy()[one % len(self._busy())]
        lease = replace(view.lease, epoch=view.lease.epoch + step)
        assert view.hand is not None
        if not self.model.holds(lease):
            assert self._deliver(lease, view.hand) == REFUSED

    def _reading_holders(self) -> list[View]:
        return [view for view in self._holders() if view in self._readers()]

    @someone(_reading_holders)
    @rule(shift=st.integers(-5, 5).filter(bool))
    def commit_from_a_wrong_offset(self, shift: int) -> None:
        [view] = self._reading_holders()
        self._take(view, 6)
        assert view.hand is not None
        wrong = max(0, self.model.offset + shift)
        if self.model.offset != wrong < number(view.hand.offset_after):
            assert self._deliver(view.lease, view.hand._replace(offset_before=id_of(wrong))) in (REFUSED, DUPLICATE)

    @someone(_holders)
    @rule(count=st.integers(1, 3), others=st.integers(0, 3))
    def fail_over_with_work_in_hand(self, count: int, others: int) -> None:
        """What its owner read last is gone, and others have been pushed in its place."""
        [view] = self._holders()
        self.replicate()
        self.push(count, 1)
        self._take(view, 6)
        self.fail_over()
        if others:
            self.push(others, 1)
        assert view.hand is not None
        self._deliver(view.lease, view.hand)

    def _up_to_date(self) -> list[View]:
        """But for those who were the owner before a failover, and are not told yet that it moved the offset."""
        return [view for view in self._reading_holders() if number(view.offset) == self.model.offset]

    @someone(_up_to_date)
    @rule(count=st.integers(1, 6))
    def fail_over_that_loses_a_commit(self, count: int) -> None:
        """Nothing more is pushed: its owner only renews its lease."""
        [view] = self._up_to_date()
        self.replicate()
        self._take(view, count)
        assert view.hand is not None
        assert self._deliver(view.lease, view.hand) == STORED
        self.fail_over()
        self._renew(view)
        assert view.lease.owner not in self.views

    def _deliver(self, lease: Lease, act: Commit) -> str:
        """A commit reaches the server: what becomes of it is what the model says, and its sender learns it."""
        self.sent.append((lease, act))
        before = everything(self.client)
        try:
            became = DUPLICATE if commit(self.client, lease, act) else STORED
        except Fenced:
            became = REFUSED
        assert became == self.model.commit(lease, act)
        if became != STORED:
            assert everything(self.client) == before
        view = self.views.get(lease.owner)
        if became != REFUSED:
            self.aside["fresh"] = True
        if view is not None and (view.lease, view.hand) == (lease, act):  # else the sender has moved on since
            if became == REFUSED:
                del self.views[lease.owner]
            view.offset, view.hand = act.offset_after, None
        return became

    def _busy_holders(self) -> list[View]:
        return [view for view in self._holders() if view.hand is not None]

    @someone(_busy_holders)
    @rule(heir=workers)
    def a_commit_arrives_too_late(self, heir: str) -> None:
        """Its lease ran out on the way, and another has it, or the same worker anew."""
        [view] = self._busy_holders()
        hand = view.hand
        assert hand is not None
        self.expire(at_once=True)
        self.acquire(heir)
        assert self._deliver(view.lease, hand) == REFUSED

    @precondition(lambda self: self.model.owner is not None)
    @rule(heir=workers, count=st.integers(1, 6))
    def kill_the_owner(self, heir: str, count: int) -> None:
        """Its lease runs out; another goes on where the last commit stands."""
        self.views.pop(str(self.model.owner), None)
        self.expire(at_once=False)
        self.turn(heir, count)

    # -- what must hold

    @invariant()
    def settled(self) -> None:
        model, keys = self.model, self.keys
        kept = model.results[self.aside["trimmed"] :]
        expected: dict[str, Any] = {keys.row(stream): row for stream, row in model.rows.items()}
        if model.owner is not None:
            expected[keys.lease] = f"{model.epoch} {model.owner}".encode()
        if model.epoch:
            expected[keys.epoch] = b"%d" % model.epoch
        if model.last or self.aside["group"]:
            expected[keys.log] = [id_of(n) for n in model.log]
        for key, wanted in ((keys.out, False), (keys.dead, True)):
            if any(is_dead(n) is wanted for n in model.results):
                expected[key] = [(id_of(n), {b"chunk": b"%d" % n}) for n in kept if is_dead(n) is wanted]
        assert self._stored() == expected
        self._settled_group()
        assert model.results == sorted(set(model.results))
        self._nothing_lost()

    def _stored(self) -> dict[str, Any]:
        """All keys of the server, readably."""
        logs = {self.keys.log, self.keys.out, self.keys.dead}
        found: dict[str, Any] = {}
        for key in {key.decode() for key in self.client.keys("*")} - {marks_key(self.keys)}:  # a note of trim's alone
            found[key] = self.client.xrange(key) if key in logs else self.client.get(key)
        if self.keys.log in found:
            found[self.keys.log] = [id_ for id_, _ in found[self.keys.log]]
        return found

    def _settled_group(self) -> None:
        model, keys = self.model, self.keys
        if not self.aside["group"]:
            return
        [group] = self.client.xinfo_groups(keys.log)
        assert (group["name"], number(group["last-delivered-id"])) == (keys.group.encode(), model.offset)
        if not self.aside["dropped"]:  # who drops chunks unread knows the lag again at the end of the log only
            assert group["lag"] == sum(n > model.offset for n in model.log)
        if model.owner is not None:
            least = WORN_MS if self.aside["fresh"] else 0
            assert least < self.client.pttl(keys.lease) <= (LEASE_MS if self.aside["fresh"] else WORN_MS)
        for stream in model.rows:
            assert ROW_TTL_MS / 2 < self.client.pttl(keys.row(stream)) <= ROW_TTL_MS

    def _nothing_lost(self) -> None:
        """Whatever happened: a row holds every chunk of its stream that has a result, once and in order."""
        for stream, row in self.model.rows.items():
            assert [int(n) for n in row.split()] == [n for n in self.model.results if stream_of(n) == stream]
        missed = {n for n in self.model.log if n <= self.model.offset} - set(self.model.results)
        assert missed <= self.aside["dropped"]
