"""Numbering and converting: which samples get which numbers, whatever failed before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.broker.appender import Pushed
from pipeline.broker.stand import Begun
from pipeline.errors import ChunkRejected, Fenced
from pipeline.manifest import InputSpec
from pipeline.outbox import Cutter, Outbox

PCM = InputSpec(sample_rate_hz=8000)
SENSOR = InputSpec(sample_rate_hz=50, channels=3, sample_type="float32")
ONE, TWO = np.arange(5, dtype=np.int16), np.arange(5, 9, dtype=np.int16)


class Box:
    """A cutter and an outbox, as a producer has them; stream `s` has begun at 100."""

    def __init__(
        self, spec: InputSpec = PCM, max_chunk_bytes: int = 1000, max_streams: int = 10, idle_ms: int = 60_000
    ) -> None:
        self.cutter, self.outbox = Cutter(spec, max_chunk_bytes), Outbox(max_streams, idle_ms)
        self.sending, self.stored, self.new = self.outbox.sending, self.outbox.stored, self.outbox.new
        self.begin("s")

    def begin(self, *streams: str) -> None:
        self.outbox.begin({stream: Begun(100, "me/0", False) for stream in streams})

    def pack(self, stream: str, samples: np.ndarray, end: bool) -> list[Pushed]:
        return self.outbox.number(stream, self.cutter.cut(stream, samples), end)

    def push(self, *streams: str) -> Sequence[int]:
        """A push that works, to each of these streams in turn."""
        seqs = []
        for stream in streams:
            self.begin(*self.new([stream]))
            chunks = self.pack(stream, ONE, False)
            self.sending(chunks)
            self.stored(chunks)
            seqs.append(chunks[-1].seq)
        return seqs


outbox = Box


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-2, 2, width=32)))
def test_float_to_int16(x: np.ndarray) -> None:
    (chunk,) = outbox().pack("s", x, False)
    expected = [max(-32768, min(32767, round(float(v) * 32768))) for v in x]
    assert np.frombuffer(chunk.data, "<i2").tolist() == expected


@given(hnp.arrays(np.int16, st.tuples(st.integers(0, 20), st.just(3))))
def test_int16_to_float_in_the_order_of_samples(x: np.ndarray) -> None:
    (chunk,) = outbox(SENSOR).pack("s", x, False)
    assert np.frombuffer(chunk.data, "<f4").reshape(-1, 3).tolist() == (x.astype(float) / 32768).tolist()


def test_mono_as_a_vector_or_a_column_and_strides() -> None:
    expected = ONE[::2].astype("<i2").tobytes()
    for x in (ONE[::2], ONE[::2, None], np.stack([ONE, ONE], 1)[::2, :1]):
        assert outbox().pack("s", x, False)[0].data == expected


@given(st.integers(0, 200), st.integers(1, 64), st.booleans())
def test_splitting(samples: int, max_chunk_bytes: int, end: bool) -> None:
    x = np.arange(samples, dtype=np.int16)
    chunks = outbox(PCM, max_chunk_bytes).pack("s", x, end)
    assert b"".join(chunk.data for chunk in chunks) == x.astype("<i2").tobytes()
    assert [chunk.seq for chunk in chunks] == list(range(100, 100 + len(chunks)))
    assert all(len(chunk.data) % 2 == 0 and len(chunk.data) <= max(2, max_chunk_bytes) for chunk in chunks)
    assert [chunk.end for chunk in chunks] == [False] * (len(chunks) - 1) + [end]


@pytest.mark.parametrize(
    ("spec", "samples", "reason"),
    [
        (PCM, np.zeros(3), "wrong_type"),
        (PCM, [1, 2], "wrong_type"),
        (PCM, np.zeros(3, np.uint8), "wrong_type"),
        (PCM, np.zeros((3, 2), np.int16), "wrong_shape"),
        (SENSOR, np.zeros(3, np.float32), "wrong_shape"),
        (SENSOR, np.zeros((1, 3, 3), np.float32), "wrong_shape"),
        (PCM, np.array([np.nan], np.float32), "not_finite"),
        (SENSOR, np.full((2, 3), np.inf, np.float32), "not_finite"),
    ],
)
def test_rejections_take_no_number(spec: InputSpec, samples: np.ndarray, reason: str) -> None:
    box = outbox(spec)
    with pytest.raises(ChunkRejected, match="stream 's'") as raised:
        box.pack("s", samples, False)
    assert raised.value.reason == reason
    assert box.pack("s", np.zeros((1, spec.channels), np.float32), False)[0].seq == 100


@pytest.mark.parametrize("stream", ["", "a{b}", "x" * 201, "new\nline"])
def test_bad_streams(stream: str) -> None:
    with pytest.raises(ChunkRejected) as raised:
        outbox().pack(stream, ONE, False)
    assert raised.value.reason == "bad_stream"


@pytest.mark.parametrize("stream", ["", "a{b}", "x" * 201, "new\nline"])
def test_bad_streams_are_given_nothing(stream: str) -> None:
    """At once, not by whoever sends: in a queue it would hold up all that stand behind it."""
    with pytest.raises(ChunkRejected) as raised:
        Cutter(InputSpec(sample_rate_hz=8000), 1000).given(stream, np.zeros(3, np.float32))
    assert raised.value.reason == "bad_stream"


@pytest.mark.parametrize("end", [False, True])
def test_what_failed_keeps_its_numbers_and_nothing_else_gets_them(end: bool) -> None:
    box = outbox(max_chunk_bytes=4)
    sent = box.pack("s", ONE, end)
    box.sending(sent)
    assert box.new(["s"]) == []
    assert box.pack("s", ONE, end) == sent
    other = box.pack("s", TWO, False)
    assert other[0].seq == sent[-1].seq + 1
    box.stored(other)
    assert box.pack("s", ONE, False)[0].seq == other[-1].seq + 1


def test_an_end_that_comes_with_the_resend_is_a_chunk_of_its_own() -> None:
    """Were the chunk stored the first time, an end within it would be dropped with the duplicate."""
    box = outbox()
    sent = box.pack("s", ONE, False)
    box.sending(sent)
    ended = box.pack("s", ONE, True)
    assert ended[:-1] == sent
    assert (ended[-1].seq, ended[-1].data, ended[-1].end) == (101, b"", True)
    box.sending(ended)
    assert box.pack("s", ONE, True) == ended
    assert box.pack("s", ONE, False)[0].seq == 102  # without its end it is another push


def test_equal_samples_after_a_success_are_new_samples() -> None:
    box = outbox()
    for seq in (100, 101, 102):
        sent = box.pack("s", ONE, False)
        box.sending(sent)
        box.stored(sent)
        assert [chunk.seq for chunk in sent] == [seq]


def test_an_end_is_forgotten_at_once_and_a_claim_goes_with_every_chunk() -> None:
    box = outbox()
    last = box.pack("s", ONE, True)
    assert {chunk.claim for chunk in last} == {"me/0"}
    box.stored(last)
    assert box.new(["s"]) == ["s"]


def test_of_too_many_streams_those_idle_longest_are_forgotten() -> None:
    box = outbox(max_streams=3)
    box.push("s", "a", "b", "s", "c")
    assert box.new(["s", "a", "b", "c"]) == ["a"]
    assert len(box.outbox) == 3
    assert box.push("s", "b") == [102, 101]


def test_a_stream_whose_last_push_may_be_lost_is_not_forgotten() -> None:
    """Its samples' numbers are nowhere else."""
    box = outbox(max_streams=2)
    failed = box.pack("s", ONE, False)
    box.sending(failed)
    box.push(*(f"t-{i}" for i in range(10)))
    assert box.new(["s"]) == []
    assert box.pack("s", ONE, False) == failed
    assert len(box.outbox) <= 3
    box.stored(failed)
    assert len(box.outbox) == 2


def test_a_stream_whose_last_push_may_be_lost_is_forgotten_once_the_server_has_forgotten_it() -> None:
    box = outbox(idle_ms=0)
    box.sending(box.pack("s", ONE, False))
    box.push("t")
    assert box.new(["s"]) == []  # on its way
    box.outbox.failed(["s"])
    box.push("t")
    assert box.new(["s"]) == ["s"]


@pytest.mark.parametrize("before", [False, True])
def test_a_stream_whose_last_push_was_refused_is_forgotten_unless_it_may_be_stored_all_the_same(before: bool) -> None:
    box = outbox(max_streams=2)
    sent = box.pack("s", ONE, False)
    if before:  # an earlier push of the same
        box.sending(sent)
        box.outbox.failed(["s"])
    box.sending(sent)
    box.outbox.refused(["s"])
    assert box.pack("s", ONE, False) == sent
    assert box.pack("s", TWO, False)[0].seq == 101
    box.push(*(f"t-{i}" for i in range(10)))
    assert box.new(["s"]) == ([] if before else ["s"])


def test_what_was_in_doubt_once_and_is_stored_is_in_doubt_no_more() -> None:
    box = outbox(max_streams=2)
    sent = box.pack("s", ONE, False)
    box.sending(sent)
    box.outbox.failed(["s"])
    box.sending(sent)
    box.stored(sent)
    box.sending(box.pack("s", TWO, False))
    box.outbox.refused(["s"])
    box.push(*(f"t-{i}" for i in range(10)))
    assert box.new(["s"]) == ["s"]


def test_streams_that_were_taken_are_forgotten_last_and_are_no_more_than_the_others() -> None:
    box = outbox(max_streams=2)
    box.outbox.fenced(["s"])
    box.push(*(f"t-{i}" for i in range(10)))
    with pytest.raises(Fenced):
        box.new(["s"])
    box.outbox.fenced(["t-8", "t-9"])
    assert box.new(["s"]) == ["s"]
    assert len(box.outbox) <= 4


def test_what_another_producer_has_taken_is_not_numbered() -> None:
    box = outbox()
    box.outbox.fenced(["s"])
    with pytest.raises(Fenced, match=r"'s'.*resume"):
        box.new(["s", "t"])
    box.outbox.resumed("s", None)
    assert box.new(["s"]) == ["s"]
    box.outbox.resumed("s", Begun(7, "me/1", True))
    assert box.pack("s", ONE, False) == [Pushed("s", 7, ONE.tobytes(), False, "me/1")]
