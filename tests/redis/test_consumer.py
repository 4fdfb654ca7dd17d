"""Consumers, blocking and asyncio alike: where they begin, what they pass over, and that leaving loses nothing."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import redis
import structlog

from pipeline.broker import topic as topics
from pipeline.broker.connection import connect_async
from pipeline.broker.keys import Keys, partition_of
from pipeline.broker.results import AsyncResultReader, ResultReader
from pipeline.consumer import AsyncConsumer, Consumer, Result
from pipeline.errors import BrokerUnavailable, ConfigError, TimedOut

PARTITIONS = 2


class Awaited:
    """An AsyncConsumer, used as if it were blocking."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self.inner = AsyncConsumer(*args, **options)

    @property
    def offsets(self) -> dict[int, bytes]:
        return self.inner.offsets

    def open(self) -> None:
        self._loop.run_until_complete(self.inner.open())

    def read(self, timeout_s: float = 1.0) -> list[Result]:
        return self._loop.run_until_complete(self.inner.read(timeout_s))

    def _each(self, results: Any) -> Iterator[Result]:
        while True:
            try:
                yield self._loop.run_until_complete(anext(results))
            except StopAsyncIteration:
                return

    def __iter__(self) -> Iterator[Result]:
        return self._each(aiter(self.inner))

    def until_end(self, stream: str, timeout_s: float | None = None) -> Iterator[Result]:
        return self._each(self.inner.until_end(stream, timeout_s))

    def close(self) -> None:
        self._loop.run_until_complete(self.inner.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


Make = Callable[..., Any]


@pytest.fixture(params=[Consumer, Awaited], ids=["blocking", "asyncio"])
def make(request: pytest.FixtureRequest, url: str, redis_client: redis.Redis) -> Iterator[Make]:
    topics.create(redis_client, topics.Topic("audio", 8000.0, "int16", 1, PARTITIONS))
    made: list[Any] = []

    def consumer(start: Any = "beginning", **options: Any) -> Any:
        made.append(request.param("audio", "digits", url=url, start=start, **options))
        return made[-1]

    yield consumer
    for each in made:
        each.close()


def publish(client: redis.Redis, stream: str, seq: int, *, end: bool = False, **fields: Any) -> None:
    """A result as a worker writes it."""
    entry = {"stream": stream, "seq": str(seq), "events": "[]", **({"end": "1"} if end else {}), **fields}
    client.xadd(Keys("audio", "digits", partition_of(stream, PARTITIONS)).out, entry)


def seqs(results: list[Result]) -> list[int]:
    return sorted(result.seq for result in results)


def test_a_result_as_it_was_published(make: Make, redis_client: redis.Redis) -> None:
    event = {"label": "one", "start_s": 0.5, "end_s": 1.0, "score": 0.75}
    scores = np.arange(6, dtype="<f4").reshape(2, 3)
    notes = [{"kind": "gap", "expected_seq": 1, "got_seq": 7}]
    publish(
        redis_client, "größe", 7, end=True, events=json.dumps([event]), scores=scores.tobytes(), shape="2,3",
        notes=json.dumps(notes),
    )  # fmt: skip
    (found,) = make().read(5)
    assert (found.stream, found.seq, found.end, found.notes) == ("größe", 7, True, notes)
    assert [(e.label, e.start_s, e.end_s, e.score) for e in found.events] == [("one", 0.5, 1.0, 0.75)]
    assert found.scores.tolist() == scores.tolist()
    assert found.partition == partition_of("größe", PARTITIONS)


def test_now_beginning_and_offsets(make: Make, redis_client: redis.Redis) -> None:
    for seq in range(3):
        publish(redis_client, f"s-{seq}", seq)
    now, beginning = make("now"), make("beginning")
    now.open()
    publish(redis_client, "s-3", 3)
    assert seqs(now.read(5)) == [3]
    assert seqs(beginning.read(5)) == [0, 1, 2, 3]
    publish(redis_client, "s-4", 4)
    assert seqs(make(beginning.offsets).read(5)) == [4]


def test_a_timeout_is_an_empty_answer(make: Make) -> None:
    for timeout_s in (0.0, 0.2):
        since = time.monotonic()
        assert make("now").read(timeout_s) == []
        assert timeout_s <= time.monotonic() - since < timeout_s + 5


@pytest.mark.parametrize("given", ["call-1", np.nan, b"1"])
def test_a_timeout_that_is_no_time_is_told(make: Make, redis_client: redis.Redis, given: Any) -> None:
    """`read("call-1")` means a stream, and reads as if it were one."""
    publish(redis_client, "s", 0, end=True)
    consumer = make()
    for call in (consumer.read, lambda given: list(consumer.until_end("s", given))):
        with pytest.raises(ConfigError, match=f"timeout_s is {given!r}; expected seconds, a number"):
            call(given)
    assert seqs(consumer.read(5)) == [0]


def test_a_timeout_without_end_waits_until_something_comes(make: Make, redis_client: redis.Redis) -> None:
    publish(redis_client, "s", 0, end=True)
    assert seqs(make().read(np.inf)) == [0]
    assert seqs(list(make().until_end("s", np.inf))) == [0]


def test_one_stream_of_all(make: Make, redis_client: redis.Redis) -> None:
    for seq, stream in enumerate(["a", "b", "c", "a"]):
        publish(redis_client, stream, seq)
    found = make(stream="a").read(5)
    assert [(r.stream, r.seq) for r in found] == [("a", 0), ("a", 3)]
    assert make(stream="d").read(0.1) == []


def test_up_to_its_end_and_the_next_life_after_it(make: Make, redis_client: redis.Redis) -> None:
    for seq in range(4):
        publish(redis_client, "other", seq)
        publish(redis_client, "s", seq, end=seq in (1, 3))
    consumer = make()
    assert [r.seq for r in consumer.until_end("s")] == [0, 1]
    assert [r.seq for r in consumer.until_end("s")] == [2, 3]


def test_an_end_that_does_not_come_is_told_in_time(make: Make, redis_client: redis.Redis) -> None:
    """Without a worker it waited for ever. What came is handed out first, and it may be waited for once more."""
    publish(redis_client, "s", 0)
    consumer, got, since = make(), [], time.monotonic()
    with pytest.raises(TimedOut, match=r"'s' has not ended within 0\.5 s.*group 'digits'.*statebelt topics") as raised:
        got.extend(consumer.until_end("s", timeout_s=0.5))
    assert 0.5 <= time.monotonic() - since < 5
    assert isinstance(raised.value, TimeoutError)
    assert seqs(got) == [0]
    publish(redis_client, "s", 1, end=True)
    assert [r.seq for r in consumer.until_end("s", timeout_s=5)] == [1]


def test_results_of_others_do_not_prolong_the_time(make: Make, redis_client: redis.Redis) -> None:
    done = threading.Event()

    def others() -> None:
        for seq in range(1000):
            publish(redis_client, "other", seq)
            if done.wait(0.01):
                return

    thread = threading.Thread(target=others)
    thread.start()
    since = time.monotonic()
    try:
        with pytest.raises(TimedOut):
            list(make().until_end("s", timeout_s=0.3))
    finally:
        done.set()
        thread.join()
    assert time.monotonic() - since < 3


def test_an_end_that_is_there_needs_no_time(make: Make, redis_client: redis.Redis) -> None:
    for seq in range(3):
        publish(redis_client, "s", seq, end=seq == 2)
    got = []
    for result in make().until_end("s", timeout_s=0.1):
        got.append(result.seq)
        time.sleep(0.1)  # whoever reads takes time of its own
    assert got == [0, 1, 2]


def test_a_loop_that_is_left_loses_nothing(make: Make, redis_client: redis.Redis) -> None:
    """Results come many at a time; those not handed out are still there, and `offsets` do not count them."""
    for seq in range(12):
        publish(redis_client, f"s-{seq % 3}", seq)
    consumer = make()
    first = list(islice(consumer, 5))
    resumed = make(consumer.offsets).read(5)
    second = list(islice(consumer, 3))
    rest = consumer.read(5)
    assert (len(first), len(second), len(rest)) == (5, 3, 4)
    assert seqs(first + second + rest) == list(range(12))
    assert seqs(first + resumed) == list(range(12))
    publish(redis_client, "s-0", 12)
    assert seqs(consumer.read(5)) == [12]


FOREIGN: dict[str, dict[str, str]] = {
    "no stream": {"seq": "0", "events": "[]"},
    "a seq of letters": {"stream": "s", "seq": "x", "events": "[]"},
    "no JSON": {"stream": "s", "seq": "0", "events": "["},
    "events that are none": {"stream": "s", "seq": "0", "events": '[{"word": "one"}]'},
    "scores without a shape": {"stream": "s", "seq": "0", "events": "[]", "scores": "1234"},
    "scores of a shape beyond all numbers": {
        "stream": "s",
        "seq": "0",
        "events": "[]",
        "scores": "1234",
        "shape": "99999999999999999999,1",
    },
    "notes that are no list": {"stream": "s", "seq": "0", "events": "[]", "notes": "5"},
    "JSON without a bottom": {"stream": "s", "seq": "0", "events": "[" * 100_000},
    "scores of another shape": {"stream": "s", "seq": "0", "events": "[]", "scores": "1234", "shape": "2,2"},
}


@pytest.mark.parametrize("server", ["embedded"], indirect=True)  # what is tried is not the server
@pytest.mark.parametrize("case", FOREIGN)
def test_an_entry_of_another_program_costs_no_result(
    make: Make, redis_client: redis.Redis, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is passed over, counted and told; what is sound beside it, in the same read, is handed out all the same."""
    structlog.reset_defaults()
    streams = [name for name in (f"s-{i}" for i in range(20)) if partition_of(name, PARTITIONS) == 1][:3]
    foreign = Keys("audio", "digits", 1).out
    publish(redis_client, streams[0], 0)
    id_ = redis_client.xadd(foreign, FOREIGN[case])  # type: ignore[arg-type]
    publish(redis_client, streams[1], 1)
    redis_client.xadd(foreign, FOREIGN[case])  # type: ignore[arg-type]
    publish(redis_client, streams[2], 2)
    consumer = make()
    assert seqs(consumer.read(5)) == [0, 1, 2]
    assert skipped(consumer) == 2
    told = capsys.readouterr().err
    assert told.count("entries_skipped") == 1
    assert "of partition 1's results is none of ours" in told
    publish(redis_client, streams[0], 3)
    assert seqs(consumer.read(5)) == [3]
    assert seqs(make({0: b"0-0", 1: id_}).read(5)) == [1, 2, 3]


def test_only_entries_of_another_program(make: Make, redis_client: redis.Redis) -> None:
    redis_client.xadd(Keys("audio", "digits", 1).out, {"a": "b"}, id="5-0")
    consumer = make()
    assert consumer.read(0.1) == []
    assert (skipped(consumer), consumer.offsets) == (1, {0: b"0-0", 1: b"5-0"})


def skipped(consumer: Any) -> int:
    return int(getattr(consumer, "inner", consumer).skipped)


def test_offsets_of_now_before_the_first_read(make: Make, redis_client: redis.Redis) -> None:
    """They were empty, and an empty answer means the beginning to whoever starts from it."""
    publish(redis_client, "s-0", 0)
    now = make("now")
    saved = now.offsets
    publish(redis_client, "s-0", 1)
    assert set(saved) == set(range(PARTITIONS))
    assert seqs(make(saved).read(5)) == [1]
    assert seqs(now.read(5)) == [1]  # `now` was when it was made


def test_readers_tell_their_offsets_once_now_is_known(url: str, redis_client: redis.Redis) -> None:
    out = Keys("audio", "digits", 1).out
    id_ = redis_client.xadd(out, {"a": "b"})
    reader = ResultReader(redis_client, "audio", "digits", PARTITIONS)
    with pytest.raises(ConfigError, match="no offsets yet: `open` it first"):
        _ = reader.offsets
    reader.open()
    assert reader.offsets == {0: b"0-0", 1: id_}

    async def opened() -> dict[int, bytes]:
        async with connect_async(url) as client:
            other = AsyncResultReader(client, "audio", "digits", PARTITIONS)
            await other.open()
            return other.offsets

    assert asyncio.run(opened()) == reader.offsets


def test_what_cannot_be_read_at_all(make: Make, url: str) -> None:
    with pytest.raises(ConfigError, match="start is 'begining'; expected"):
        make("begining")
    for stream in (3, "a{b}", ""):
        with pytest.raises(ConfigError, match=r"stream name .* expected 1 to 200 bytes"):
            make(stream=stream)
    for form in (Consumer, AsyncConsumer):
        with pytest.raises(ConfigError, match="no topic 'calls'"):
            form("calls", "digits", url=url)
        with pytest.raises(ConfigError, match="group"):
            form("audio", "a{b}", url=url)
        with pytest.raises(BrokerUnavailable):
            form("audio", "digits", url="unix:///nowhere/redis.sock")
