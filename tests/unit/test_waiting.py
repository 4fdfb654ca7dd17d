"""The queue of a producer that never waits: what is dropped, what is kept, and that a worker can always tell."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.broker.appender import Append, AppendFailed, AppendFenced, AppendFull, Given, Pushed
from pipeline.broker.exchange import Exchange
from pipeline.broker.stand import Begin, Begun, Terms
from pipeline.errors import BacklogFull, BrokerUnavailable, ConfigError, Fenced, StatebeltError
from pipeline.waiting import Waiting, still_waiting

TERMS = Terms("calls", 2)
AWAY = BrokerUnavailable("away")


class Queue(Waiting):
    def __init__(self, most: int = 10, max_streams: int = 100) -> None:
        self.counts: Counter[str] = Counter()
        super().__init__(most, max_streams, self.counts)

    def push(self, stream: str, *parts: bytes, end: bool = False) -> int:
        return self.add(stream, list(parts), end)


@dataclass
class Log:
    """Answers what a queue asks, in the order of its choosing: what is stored, refused, lost, taken."""

    chunks: list[Pushed] = field(default_factory=list)
    begun: dict[str, int] = field(default_factory=dict)
    clock: int = 1000

    def answer(self, what: Exchange[object] | float, how: str = "ok") -> object:
        if isinstance(what, float):
            return None
        if isinstance(what, Begin):
            if how != "ok":
                raise AWAY
            return {stream: self.begin(stream) for group in what._groups.values() for stream in group}
        assert isinstance(what, Append)
        chunks, everything = list(what._chunks), list(range(len(what._chunks)))
        if how == "full":
            raise AppendFull("full", [None] * len(chunks), everything)
        if how == "taken":
            raise AppendFenced("taken", [None] * len(chunks), everything)
        if how in ("ok", "reply lost"):
            self.store(chunks)
        if how != "ok":
            raise AppendFailed("lost", [None] * len(chunks), everything, [])
        return [b""] * len(chunks)

    def begin(self, stream: str) -> Begun:
        if stream in self.begun:
            return Begun(self.begun[stream], "me/0", True)
        self.clock += 1000
        return Begun(self.clock, "me/0", False)

    def store(self, chunks: list[Pushed]) -> None:
        self.chunks += chunks
        for chunk in chunks:
            self.begun[chunk.stream] = max(self.begun.get(chunk.stream, 0), chunk.seq + 1)
            if chunk.end:
                del self.begun[chunk.stream]

    def serve(self, queue: Queue, hows: str | list[str] = "ok", turns: int = 10_000) -> None:
        """Let the queue send until it has nothing left, or some turns."""
        answers = deque([hows] if isinstance(hows, str) else hows)
        steps = queue.drain(TERMS, "me/0", lambda: False)
        step = next(steps, None)
        while step is not None and turns > 0:
            turns -= 1
            how = "ok" if isinstance(step, float) or not answers else answers.popleft()
            try:
                try:
                    step = steps.send(self.answer(step, how))
                except StatebeltError as error:
                    step = steps.throw(error)
            except StopIteration:
                return
        steps.close()

    def of(self, stream: str) -> list[tuple[int, bytes, bool]]:
        """What a worker takes of a stream: the number since its life began, data, end."""
        first, next_seq, found = 0, -1, []
        for chunk in self.chunks:
            if chunk.stream == stream and chunk.seq >= next_seq:
                first = chunk.seq if next_seq < 0 or chunk.seq > next_seq + 500 else first
                found.append((chunk.seq - first, chunk.data, chunk.end))
                next_seq = chunk.seq + 1
        return found


def test_what_is_not_too_much_arrives_as_it_was_pushed() -> None:
    queue, log = Queue(), Log()
    assert queue.push("s", b"a", b"b") == -1  # nobody knows yet
    log.serve(queue)
    assert queue.push("s", b"c", end=True) == log.chunks[-1].seq + 1
    log.serve(queue)
    assert log.of("s") == [(0, b"a", False), (1, b"b", False), (2, b"c", True)]
    assert queue.counts == {"pushed": 3}
    assert len(queue) == 0


def test_the_oldest_go_first_and_leave_a_gap() -> None:
    queue, log = Queue(4), Log()
    queue.push("s", b"0")
    queue.push("t", b"0")
    log.serve(queue)
    for i in b"123456":
        queue.push("s", bytes([i]))
    queue.push("t", b"1")
    log.serve(queue)
    assert log.of("s") == [(0, b"0", False), (4, b"4", False), (5, b"5", False), (6, b"6", False)]
    assert log.of("t") == [(0, b"0", False), (1, b"1", False)]
    assert queue.counts == {"pushed": 6, "dropped": 3}


def test_a_beginning_that_was_dropped_is_told_by_an_empty_chunk_before_the_gap() -> None:
    """To a fresh row any number is the first: the gap would pass unnoticed."""
    queue, log = Queue(2), Log()
    for data in (b"0", b"1", b"2"):
        queue.push("s", data)
    log.serve(queue, ["ok", "reply lost"])
    queue.push("s", b"3")
    log.serve(queue)
    assert log.of("s") == [(0, b"", False), (2, b"1", False), (3, b"2", False), (4, b"3", False)]


def test_an_end_outlives_its_samples() -> None:
    queue, log = Queue(2), Log()
    queue.push("s", b"0")
    log.serve(queue)
    queue.push("s", b"1", end=True)
    queue.push("t", b"0")
    queue.push("t", b"1")
    log.serve(queue)
    assert log.of("s") == [(0, b"0", False), (2, b"", True)]
    assert queue.counts == {"pushed": 3, "dropped": 2}


def test_a_queue_of_nothing_but_ends_keeps_its_bound() -> None:
    queue, log = Queue(3), Log()
    for i in range(5):
        queue.push(f"s-{i}", b"", end=True)
        assert len(queue) <= 3
    log.serve(queue)
    assert [chunk.stream for chunk in log.chunks] == ["s-2", "s-3", "s-4"]
    assert queue.counts == {"pushed": 3, "dropped_ends": 2}


def test_a_life_whose_end_was_dropped_is_not_gone_on_with() -> None:
    """To the server it lives: the next life of that name would pass for the rest of it."""
    queue, log = Queue(2), Log()
    queue.push("a", b"1")
    log.serve(queue)
    for stream in "abc":
        queue.push(stream, b"", end=True)
    assert queue.counts["dropped_ends"] == 1
    log.serve(queue)
    for data in (b"2", b"3"):
        queue.push("a", data)
        log.serve(queue)
    assert log.of("a") == [(0, b"1", False), (2, b"2", False), (3, b"3", False)]


def test_what_was_given_is_dropped_last_and_its_stream_then_begins_with_a_gap() -> None:
    """Without the gap all that follows would pass for the results of a stream that was given it."""
    queue, log = Queue(2), Log()
    for stream in "abc":
        queue.push(stream, Given(stream.encode()))
    log.serve(queue)
    queue.push("a", b"1")
    log.serve(queue)
    assert log.of("a") == [(0, b"", False), (2, b"1", False)]
    assert log.of("b") == [(0, b"b", False)]
    assert queue.counts == {"pushed": 3, "dropped": 1}


@pytest.mark.parametrize("failure", ["reply lost", "raised"])
def test_what_may_be_stored_waits_as_it_is(failure: str) -> None:
    """An end that is stored, and gets a second number as the oldest of a full queue, would be a second end."""
    queue, log = Queue(4), Log()
    queue.push("s", b"0")
    log.serve(queue)
    queue.push("s", b"1", end=True)
    if failure == "reply lost":
        log.serve(queue, ["reply lost", "full"], turns=3)
    else:  # what ended the sending for good
        steps = queue.drain(TERMS, "me/0", lambda: False)
        log.answer(next(steps), "ok")
        with pytest.raises(ConfigError):
            steps.throw(ConfigError("another partition holds no log"))
    for _ in range(6):
        queue.push("t", b"0")
    assert queue.counts["dropped"] == 3
    log.serve(queue)
    assert log.of("s") == [(0, b"0", False), (1, b"1", True)]
    assert [chunk.data for chunk in log.chunks if chunk.stream == "s"] == [b"0", b"1", b"1"]  # sent again as it was
    assert queue.counts["dropped_ends"] == 0


def test_a_queue_of_nothing_but_ends_and_what_may_be_stored_keeps_its_bound() -> None:
    queue, log = Queue(4), Log()
    for stream in "ab":
        queue.push(stream, b"0", end=True)
    log.serve(queue, ["ok", "reply lost", "full"], turns=4)
    for stream in "cde":
        queue.push(stream, b"", end=True)
        assert len(queue) <= 4
    assert queue.counts == {"resent": 2, "dropped": 1, "dropped_ends": 1}
    log.serve(queue)
    for stream in "abcde":
        assert [end for _, _, end in log.of(stream)] == [True]


def test_two_lives_of_a_name_do_not_share_a_call() -> None:
    """The second begins above the first, once that has ended."""
    queue, log = Queue(), Log()
    for life in (b"1", b"2", b"3"):
        queue.push("s", life, life, end=True)
    queue.push("t", b"0")
    log.serve(queue)
    assert [data for _, data, _ in log.of("s")] == [b"1", b"1", b"2", b"2", b"3", b"3"]
    seqs = [chunk.seq for chunk in log.chunks if chunk.stream == "s"]
    assert seqs == sorted(set(seqs))


def test_what_is_on_its_way_is_not_dropped_and_what_came_back_is() -> None:
    queue, log = Queue(4), Log()
    queue.push("s", b"0", b"1")
    steps = queue.drain(TERMS, "me/0", lambda: False)
    append = steps.send(log.answer(next(steps)))
    queue.push("s", b"2", b"3", b"4", b"5")
    assert queue.counts["dropped"] == 2
    while isinstance(append, Append):
        append = steps.throw(full_of(append))
    steps.close()
    queue.push("s", b"6")
    log.serve(queue)
    assert [data for _, data, _ in log.of("s")] == [b"", b"1", b"4", b"5", b"6"]


def test_what_does_not_fit_at_once_goes_in_parts() -> None:
    """The log takes the chunks of a call together or not at all: a call that is larger than the room never fits."""
    queue, log = Queue(100), Log()
    for i in range(48):
        queue.push("s", bytes([i]))
    sizes = []
    steps = queue.drain(TERMS, "me/0", lambda: False)
    step = steps.send(log.answer(next(steps)))
    room = 5
    while isinstance(step, Append):
        sizes.append(len(step._chunks))
        fits = sizes[-1] <= room
        room -= sizes[-1] * fits
        try:
            step = steps.send(log.answer(step)) if fits else steps.throw(full_of(step))
        except StopIteration:
            break
    assert room == 0
    assert [data for _, data, _ in log.of("s")] == [bytes([i]) for i in range(5)]
    assert step == pytest.approx(0.02)


def full_of(append: Append) -> AppendFull:
    size = len(append._chunks)
    return AppendFull("full", [None] * size, list(range(size)))


def test_an_opening_and_its_chunk_fit_one_after_the_other() -> None:
    queue, log = Queue(2), Log()
    queue.push("s", b"0", b"1", b"2")
    steps = queue.drain(TERMS, "me/0", lambda: False)
    step = steps.send(log.answer(next(steps)))
    for _ in range(50):  # there is room for one chunk at a time, and it is read at once
        try:
            if isinstance(step, Append) and len(step._chunks) > 1:
                step = steps.throw(full_of(step))
            else:
                step = steps.send(log.answer(step))
        except StopIteration:
            break
    assert [chunk.data for chunk in log.chunks] == [b"", b"1", b"2"]


def test_a_full_partition_does_not_hold_up_the_others() -> None:
    queue, log = Queue(20), Log()
    here, there = "a", "b"
    for i in range(5):
        queue.push(here, bytes([i]))
        queue.push(there, bytes([i]))
    steps = queue.drain(Terms("calls", 1000), "me/0", lambda: False)
    append = steps.send(log.answer(next(steps)))
    assert isinstance(append, Append)
    refused = [i for i, chunk in enumerate(append._chunks) if chunk.stream == here]
    log.store([chunk for chunk in append._chunks if chunk.stream == there])
    following = steps.throw(AppendFull("full", [None] * 10, refused))
    while isinstance(following, Append):
        assert {chunk.stream for chunk in following._chunks} == {here}
        following = steps.throw(full_of(following))
    assert following == pytest.approx(0.02)  # nothing is left but for the full one: try it again later
    assert [data for _, data, _ in log.of(there)] == [bytes([i]) for i in range(5)]
    steps.close()
    log.serve(queue)
    assert [data for _, data, _ in log.of(here)] == [bytes([i]) for i in range(5)]


def test_a_stream_that_was_taken_is_dropped_and_told_at_the_next_push() -> None:
    queue, log = Queue(4), Log()
    queue.push("s", b"0")
    queue.push("s", b"1")
    log.serve(queue, ["ok", "taken"])
    assert len(queue) == 0
    assert log.chunks == []
    with pytest.raises(Fenced, match="'s'"):
        queue.push("s", b"2")
    assert queue.counts == {"fenced": 2}
    queue.resumed("s", Begun(7, "me/1", True))
    assert queue.push("s", b"2") == 7
    log.serve(queue)
    assert log.chunks == [Pushed("s", 7, b"2", False, "me/1")]


def test_streams_that_were_taken_are_forgotten_last_and_are_no_more_than_the_others() -> None:
    queue, log = Queue(4, max_streams=2), Log()
    for stream in "abc":
        queue.push(stream, b"0")
        log.serve(queue, ["ok", "taken"])
        for i in range(5):
            queue.push(f"{stream}-{i}", b"0")
            log.serve(queue)
        with pytest.raises(Fenced):
            queue.push(stream, b"1")
    assert queue.push("a", b"1") == -1


def test_streams_that_are_idle_are_forgotten_but_not_a_gap_to_come() -> None:
    queue, log = Queue(2, max_streams=3), Log()
    queue.push("gap", b"0")
    log.serve(queue)
    queue.push("gap", b"1")
    for i in range(20):  # the first of these drops it
        queue.push(f"t-{i}", b"0")
        queue.push(f"t-{i}", b"1")
        log.serve(queue)
    assert len(queue._lives) <= 3
    queue.push("gap", b"2")
    queue.push("t-0", b"2")
    log.serve(queue)
    assert log.of("gap") == [(0, b"0", False), (2, b"2", False)]
    assert log.of("t-0") == [(0, b"0", False), (1, b"1", False), (2, b"2", False)]


def test_what_is_given_up_is_counted() -> None:
    queue, log = Queue(10), Log()
    queue.push("s", b"0", b"1", end=True)
    queue.push("t", b"", end=True)
    log.serve(queue, ["away"], turns=1)
    queue.give_up()
    assert len(queue) == 0
    assert queue.counts == {"dropped": 2, "dropped_ends": 2}


def test_the_error_of_a_flush_says_what_is_in_the_way() -> None:
    queue, log = Queue(), Log()
    queue.push("s", b"0")
    log.serve(queue, ["ok", "full"], turns=2)
    assert isinstance(still_waiting(queue, 1.5), BacklogFull)
    assert "1 chunks still wait after 1.5 s (full)" in str(still_waiting(queue, 1.5))
    log.serve(queue, ["reply lost"], turns=1)
    assert isinstance(still_waiting(queue, 1.5), BrokerUnavailable)


PUSH = st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(0, 3), st.booleans())
SERVE = st.tuples(st.just("serve"), st.lists(st.sampled_from(["ok", "full", "away", "reply lost"])), st.integers(1, 6))


@settings(max_examples=300, deadline=None)
@given(st.lists(PUSH | SERVE, max_size=40), st.integers(2, 9), st.integers(1, 3))
def test_a_worker_can_always_tell_what_is_missing(acts: list[tuple], most: int, max_streams: int) -> None:
    """Whatever fails, whenever: what follows without a gap in the numbers followed without a gap when it was pushed."""
    queue, log = Queue(most, max_streams), Log()
    pushed: dict[str, list[list[bytes]]] = {}  # every life of every stream: its samples
    tag, chunks = 0, 0
    for act in [*acts, ("serve", [], 10_000)]:
        if act[0] == "serve":
            log.serve(queue, list(act[1]), act[2])
            continue
        _, stream, parts, end = act
        lives = pushed.setdefault(stream, [[]])
        data = []
        for _ in range(max(parts, not end)):
            tag += 1
            data.append(tag.to_bytes(2, "big"))
        queue.push(stream, *(data or [b""]), end=end)
        chunks += len(data)
        lives[-1] += data
        if end:
            lives.append([])
        assert len(queue) <= most
    assert len(queue) == 0
    for stream, lives in pushed.items():
        follows = {b: a for life in lives for a, b in zip([b"start", *life], life, strict=False)}
        before, next_seq, ended, found = b"start", None, True, 0
        for chunk in (chunk for chunk in log.chunks if chunk.stream == stream):
            if next_seq is not None and chunk.seq < next_seq:
                continue  # sent again
            assert not (ended and chunk.seq == next_seq), f"{chunk} after an end: a life that nobody began"
            if chunk.data:
                found += 1
                contiguous = ended or chunk.seq == next_seq
                before = b"start" if ended else before
                assert not contiguous or follows[chunk.data] == before, f"{chunk} after {before!r}, and no gap"
                before = chunk.data
            elif not ended and chunk.seq == next_seq and chunk.end:
                assert not [x for life in lives for x in life if follows[x] == before and before != b"start"]
            next_seq, ended = chunk.seq + 1, chunk.end
    taken = {chunk.data for chunk in log.chunks if chunk.data}
    assert len(taken) + queue.counts["dropped"] >= chunks
