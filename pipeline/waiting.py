"""The chunks of a producer that never waits: a bounded queue that drops its oldest, so that workers can tell.

A chunk has its place in its stream when it is pushed; its seq follows once the server has said where the stream's life
begins. So what is dropped leaves a gap in the numbers, and the worker reports it. Two things are kept so that this
holds at both ends of a life: a beginning that was dropped is sent without its samples, before the gap; and an end is
not dropped with its samples (but for a queue of nothing else). A chunk that may be stored, because the reply was lost,
waits as it is until that is known: an end with a second number would be a second end.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.broker.appender import Append, AppendFailed, AppendFenced, AppendFull, Given, Pushed, taken
from pipeline.broker.exchange import Steps
from pipeline.broker.keys import partition_of
from pipeline.broker.stand import Begin, Begun, Terms
from pipeline.errors import BacklogFull, BrokerUnavailable, ConfigError, Fenced, StatebeltError

CLOSED = "this producer is closed, nothing was sent: push before close(), or make another Producer"

_PAUSE_S = 0.02
_BATCH = 256


@dataclass(slots=True, eq=False)
class _Life:
    """One life of a stream. `base` is the seq of chunk 0, `opening` the free number before it (in a new life)."""

    stream: str
    base: int | None = None
    claim: str = ""
    opening: int | None = None
    chunks: int = 0
    stored: int = 0
    headless: bool = False


@dataclass(slots=True, eq=False)
class _Waits:
    ticket: int
    life: _Life
    index: int
    data: bytes
    end: bool
    unsure: bool = False  # it was sent, and nobody knows what became of it


_Sent = tuple[_Waits, Pushed]


class Waiting:
    """A queue of at most `most` chunks, those on their way included.

    Args:
        most: at least 2. Half of them may be on their way; the oldest of the others are dropped.
        max_streams: streams remembered, and streams that another producer took, as in `Outbox`.
        counts: what became of chunks is added to it: pushed, resent, dropped, dropped_ends, fenced.
    """

    def __init__(self, most: int, max_streams: int, counts: Counter[str]) -> None:
        if most < 2:
            raise ConfigError(f"max_waiting is {most}; expected at least 2 chunks, one on its way and one that waits")
        self._most = most
        self._max_streams = max_streams
        self._counts = counts
        self._lock = threading.RLock()  # pushes come from the caller's thread, sending goes on in another
        self._lives: OrderedDict[str, _Life] = OrderedDict()
        self._queue: OrderedDict[int, _Waits] = OrderedDict()
        self._droppable: OrderedDict[int, None] = OrderedDict()  # tickets of those that are more than an end
        self._endless: OrderedDict[str, None] = OrderedDict()  # streams the end of whose last life was dropped
        self._fenced: OrderedDict[str, None] = OrderedDict()
        self._out: list[_Waits] = []
        self._tickets = 0
        self._at_once = _BATCH
        self._given_up = False
        self.trouble: StatebeltError | None = None

    def __len__(self) -> int:
        with self._lock:
            return len(self._queue) + len(self._out)

    def add(self, stream: str, parts: Sequence[bytes], end: bool) -> int:
        """Queue a push. Returns the seq of its last chunk, -1 while nobody knows it.

        Raises:
            Fenced: another producer has the stream.
            ConfigError: it was given up meanwhile.
        """
        with self._lock:
            if self._given_up:
                raise ConfigError(CLOSED)
            if stream in self._fenced:
                raise Fenced(f"nothing is queued: {taken([stream])}")
            life = self._lives.setdefault(stream, _Life(stream))
            for i, part in enumerate(parts):
                self._tickets += 1
                self._queue[self._tickets] = _Waits(self._tickets, life, life.chunks, part, end and i == len(parts) - 1)
                if not isinstance(part, Given):  # without it, all that follows would be something else
                    self._droppable[self._tickets] = None
                life.chunks += 1
            if end:
                del self._lives[stream]
            while len(self) > self._most:
                self._drop()
            return -1 if life.base is None else life.base + life.chunks - 1

    def _drop(self) -> None:
        while self._droppable:
            waits = self._queue[self._droppable.popitem(last=False)[0]]
            if waits.end and not waits.data:
                continue
            waits.life.headless |= waits.index == 0
            self._counts["dropped"] += 1
            if not waits.end:
                del self._queue[waits.ticket]
                return
            # Its end stays, one number further: so that there is a gap where its samples were.
            waits.data, waits.index = b"", waits.index + 1
        waits = self._queue.popitem(last=False)[1]  # nothing is left but ends, what was given and what may be stored
        waits.life.headless |= waits.index == 0
        self._count_dropped(waits)
        if waits.end:
            self._endless[waits.life.stream] = None
            if len(self._endless) > self._max_streams + self._most:
                self._endless.popitem(last=False)

    def _count_dropped(self, waits: _Waits) -> None:
        if waits.data or not waits.end:
            self._counts["dropped"] += 1
        if waits.end:
            self._counts["dropped_ends"] += 1

    def take(self, full: Collection[int], partitions: int) -> list[_Waits]:
        """The oldest chunks go on their way: in order, one life a stream, none of the partitions in `full`."""
        with self._lock:
            lives: dict[str, _Life] = {}
            for waits in self._queue.values():
                if len(self._out) == min(_BATCH, self._most // 2):
                    break
                life = waits.life
                if partition_of(life.stream, partitions) in full or lives.setdefault(life.stream, life) is not life:
                    continue
                self._out.append(waits)
            for waits in self._out:
                del self._queue[waits.ticket]
                self._droppable.pop(waits.ticket, None)
            return list(self._out)

    def give_back(self, batch: Iterable[_Waits]) -> None:
        """These wait again, first in the queue. Those that are certainly not stored may be dropped."""
        with self._lock:
            back = sorted(batch, key=lambda waits: waits.ticket, reverse=True)
            for waits in back:
                self._queue[waits.ticket] = waits
                self._queue.move_to_end(waits.ticket, last=False)
                if not isinstance(waits.data, Given) and not waits.unsure:
                    self._droppable[waits.ticket] = None
                    self._droppable.move_to_end(waits.ticket, last=False)
            self._sent(back)

    def done(self, batch: Iterable[_Waits]) -> None:
        """These are in the log."""
        with self._lock:
            batch = list(batch)
            for waits in batch:
                self._counts["pushed"] += 1
                life = waits.life
                life.stored, life.headless = waits.index + 1, False
                if self._lives.get(life.stream) is life:
                    self._lives.move_to_end(life.stream)
            self._sent(batch)
            for _ in range(len(self._lives) - self._max_streams):
                stream, life = self._lives.popitem(last=False)
                # What was dropped after the last stored chunk is known here alone: there must be a gap before the next.
                if life.stored < life.chunks:
                    self._lives[stream] = life

    def give_up(self) -> None:
        """Drop everything, counted: nobody is going to send it, nor what comes later."""
        with self._lock:
            self._given_up = True
            for waits in [*self._out, *self._queue.values()]:
                self._count_dropped(waits)
            self._queue.clear()
            self._droppable.clear()
            self._out.clear()

    def resumed(self, stream: str, begun: Begun | None) -> None:
        """The stream goes on from here; None: its next chunk begins a new life."""
        with self._lock:
            self._lives.pop(stream, None)
            self._endless.pop(stream, None)
            self._fenced.pop(stream, None)
            if begun is not None:
                self._lives[stream] = _Life(stream, begun.next_seq, begun.claim)

    def holds(self, stream: str) -> bool:
        """Whether chunks of this stream wait or are on their way."""
        with self._lock:
            return any(waits.life.stream == stream for waits in [*self._out, *self._queue.values()])

    def drain(self, terms: Terms, claim: str, stopping: Callable[[], bool]) -> Steps[None]:
        """Send until nothing waits, however long that takes; `stopping` ends it at the next failure."""
        full: set[int] = set()
        while not stopping():
            batch = self.take(full, terms.partitions)
            if batch:
                try:
                    yield from self._send(batch, terms, claim, stopping, full)
                finally:  # where it failed for good: what is not known to be stored waits again
                    self.give_back([*self._out])
            elif full:
                full.clear()
                yield _PAUSE_S
            else:
                self.trouble = None
                return

    def _send(
        self, batch: list[_Waits], terms: Terms, claim: str, stopping: Callable[[], bool], full: set[int]
    ) -> Steps[None]:
        unbegun = dict.fromkeys(waits.life.stream for waits in batch if waits.life.base is None)
        if unbegun:
            try:
                self._begun(batch, (yield Begin(terms, list(unbegun), claim)))
            except BrokerUnavailable as error:
                self.trouble = error
                self.give_back(batch)
                yield _PAUSE_S
                return
        left = _numbered(batch)
        while left and not (stopping() and self.trouble):
            now, left = left[: self._at_once], left[self._at_once :]
            try:
                yield Append(terms, [chunk for _, chunk in now])
                again: list[_Sent] = []
                self.trouble, self._at_once = None, min(_BATCH, 2 * self._at_once)
            except (AppendFull, AppendFenced, AppendFailed) as error:
                unknown = error.unknown if isinstance(error, AppendFailed) else []
                for i in unknown:
                    now[i][0].unsure = True
                failed = sorted({*error.refused, *unknown})
                again = [now[i] for i in failed]
                self._settle(now, [*again, *left])
                if isinstance(error, AppendFenced):
                    left = self._fence(again, left)
                    continue
                self.trouble = error
                if isinstance(error, AppendFull):
                    # The chunks of a partition are taken together or not at all: fewer may fit. One does not: full.
                    if self._at_once == 1:
                        full.update(partition_of(waits.life.stream, terms.partitions) for waits, _ in again)
                    self._at_once = max(1, self._at_once // 2)
                    self.give_back(dict.fromkeys(waits for waits, _ in [*again, *left]))
                    return
                self._counts["resent"] += len(again)
                left = [*again, *left]
                yield _PAUSE_S
            except BaseException:  # what ends the sending for good tells nothing of what was sent
                for waits, _ in now:
                    waits.unsure = True
                raise
            else:
                self._settle(now, left)

    def _settle(self, sent: Sequence[_Sent], left: Sequence[_Sent]) -> None:
        """What was sent is stored, but for what is left."""
        unsent = {waits for waits, _ in left}
        kept = {chunk for _, chunk in left}
        for waits, chunk in sent:
            if chunk not in kept and chunk.seq == waits.life.opening:
                waits.life.headless = False
        self.done(dict.fromkeys(waits for waits, _ in sent if waits not in unsent))

    def _begun(self, batch: Sequence[_Waits], begun: Mapping[str, Begun]) -> None:
        with self._lock:
            for life in {waits.life for waits in batch if waits.life.base is None}:
                seq, life.claim, goes_on = begun[life.stream]
                endless = self._endless.pop(life.stream, False) is None
                life.opening = None if goes_on else seq
                # To the server a life whose end was dropped goes on: a gap divides the new one from it.
                life.base = seq if goes_on and not endless else seq + 1

    def _fence(self, refused: Sequence[_Sent], left: Sequence[_Sent]) -> list[_Sent]:
        """Another producer has these streams: drop what waits of them. Returns what is left of others."""
        with self._lock:
            lives = {waits.life for waits, _ in refused}
            for life in lives:
                if self._lives.get(life.stream) is life:  # else it was ended, and what is pushed now is another life
                    del self._lives[life.stream]
                    self._fenced[life.stream] = None
            while len(self._fenced) > self._max_streams:
                self._fenced.popitem(last=False)
            waiting = [waits for waits in self._queue.values() if waits.life in lives]
            for waits in waiting:
                del self._queue[waits.ticket]
                self._droppable.pop(waits.ticket, None)
            sending = [waits for waits in self._out if waits.life in lives]
            self._counts["fenced"] += len(sending) + len(waiting)
            self._sent(sending)
            return [(waits, chunk) for waits, chunk in left if waits.life not in lives]

    def _sent(self, batch: Iterable[_Waits]) -> None:
        gone = set(batch)
        self._out = [waits for waits in self._out if waits not in gone]


def _numbered(batch: Sequence[_Waits]) -> list[_Sent]:
    """Chunks as they are sent, and what each stands for: a life's opening goes with the first chunk left of it."""
    found: list[_Sent] = []
    opened: set[_Life] = set()
    for waits in batch:
        life = waits.life
        assert life.base is not None
        if life.headless and life.opening is not None and life not in opened:
            opened.add(life)
            found.append((waits, Pushed(life.stream, life.opening, b"", False, life.claim)))
        found.append((waits, Pushed(life.stream, life.base + waits.index, waits.data, waits.end, life.claim)))
    return found


def still_waiting(waiting: Waiting, timeout_s: float) -> StatebeltError:
    """The error of a flush that ran out of time."""
    message = f"{len(waiting)} chunks still wait after {timeout_s:g} s ({waiting.trouble or 'they are on their way'})"
    return (BacklogFull if isinstance(waiting.trouble, BacklogFull) else BrokerUnavailable)(
        f"{message}. They are sent when that is over, or dropped as newer ones come: wait, start workers, or give up"
    )
