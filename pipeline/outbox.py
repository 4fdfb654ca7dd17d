"""What blocking and asyncio producers share: checking, converting, splitting and numbering chunks. No I/O.

`seq` makes resending safe: a worker drops what it has seen. So a chunk keeps its number until it is known to
be stored: push the same samples again after a failure, and they go out under the same numbers.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.broker.appender import Given, Pushed, taken
from pipeline.broker.keys import check_stream
from pipeline.broker.stand import Begun
from pipeline.component import Array
from pipeline.errors import ChunkRejected, Fenced
from pipeline.manifest import InputSpec
from pipeline.samples import carried

Item = tuple[str, Array | Given, bool]
"""A stream, its samples, and whether it ends with them. (What is given to a stream goes the same way.)"""

MAX_STREAMS = 100_000
"""Streams that a producer remembers, by default: some 32 MB."""


class Cutter:
    """Samples to the bytes of chunks.

    Args:
        spec: what the topic carries.
        max_chunk_bytes: longer samples are split; a cut changes no byte of a result.
    """

    def __init__(self, spec: InputSpec, max_chunk_bytes: int) -> None:
        self._spec = spec
        self._dtype = np.dtype(spec.sample_type).newbyteorder("<")
        self._any_value = spec.sample_type == "int16"  # of float32 each has to be looked at
        self._mono = spec.channels == 1
        self.sample_bytes = self._dtype.itemsize * spec.channels
        self._chunk_samples = max(1, max_chunk_bytes // self.sample_bytes)

    def given(self, stream: str, values: Array) -> Given:
        """What a stream is given, as it is sent. Raises ChunkRejected as `cut`."""
        check_stream(stream)
        x = np.asarray(values)
        if x.dtype != np.float32:
            raise ChunkRejected(
                "wrong_type", f"stream {stream!r}: given {x.dtype}; expected float32: use x.astype('float32')"
            )
        if not np.isfinite(x).all():
            raise ChunkRejected("not_finite", f"stream {stream!r}: given NaN or infinity; repair it first")
        return Given(x.astype("<f4", copy=False).tobytes())

    def cut(self, stream: str, samples: Array | Given) -> list[bytes]:
        """At least one chunk's data. Raises ChunkRejected: `bad_stream`, and as `carried` does."""
        if isinstance(samples, Given):
            return [samples]
        check_stream(stream)
        if self._as_carried(samples):
            data = samples.tobytes()
        else:
            data = carried(samples, self._spec, f"stream {stream!r}").astype(self._dtype, copy=False).tobytes()
        size = self._chunk_samples * self.sample_bytes
        if 0 < len(data) <= size:
            return [data]
        return [data[at : at + size] for at in range(0, len(data), size)] or [b""]

    def _as_carried(self, samples: Array) -> bool:
        """Whether nothing has to be made of these samples, or looked for in them: as nearly always."""
        if not self._any_value or type(samples) is not np.ndarray or samples.dtype != self._dtype:
            return False
        shape = samples.shape
        return shape[1] == self._spec.channels if len(shape) == 2 else len(shape) == 1 and self._mono


class _Failed(NamedTuple):
    """What was sent last and is not known to be stored, without its samples: enough to know them again."""

    chunks: int
    end: bool
    given: bool
    size_bytes: int
    digest: bytes

    @classmethod
    def of(cls, chunks: Sequence[Pushed]) -> _Failed:
        """Of the chunks that were sent."""
        return cls(len(chunks), chunks[-1].end, *_print([chunk.data for chunk in chunks]))


def _print(parts: Sequence[bytes]) -> tuple[bool, int, bytes]:
    data = b"".join(parts)
    return isinstance(parts[0], Given), len(data), hashlib.blake2b(data, digest_size=16).digest()


@dataclass(slots=True)
class _Stream:
    """`sending` is on its way now, `failed` was (at `failed_s`, where it is `unsure` whether it is stored)."""

    next_seq: int
    claim: str
    sending: Sequence[Pushed] = ()
    failed: _Failed | None = None
    unsure: bool = False
    failed_s: float = 0.0


class Outbox:
    """Numbers the chunks of one producer's streams.

    Args:
        max_streams: beyond so many, those idle longest are forgotten. No chunk is lost or doubled by it: the server
            knows where they stand, and is asked when they are pushed to again. (But a push that was refused and given
            up is a gap to workers only while its stream is remembered.) Of streams that another producer took, as many
            are remembered beside them: a push to one that was forgotten takes it back.
        idle_ms: streams whose last push may or may not be stored are remembered for so long: only their numbers keep
            the same samples from being stored twice. Afterwards their state is gone at the server as well.
    """

    def __init__(self, max_streams: int = MAX_STREAMS, idle_ms: int = 3_600_000) -> None:
        self._max_streams = max_streams
        self._idle_s = idle_ms / 1000
        self._streams: OrderedDict[str, _Stream] = OrderedDict()
        self._unsure: OrderedDict[str, _Stream] = OrderedDict()  # those on their way among them
        self._fenced: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._streams) + len(self._unsure) + len(self._fenced)

    def new(self, streams: Iterable[str]) -> list[str]:
        """Those of `streams` that have no number to go on from. Raises Fenced for one that was taken from us."""
        fenced = [stream for stream in streams if stream in self._fenced]
        if fenced:
            raise Fenced(f"nothing is sent: {taken(fenced)}")
        return [stream for stream in streams if stream not in self._streams and stream not in self._unsure]

    def begin(self, begun: Mapping[str, Begun]) -> None:
        """The next chunk of each of these streams has this number, whatever was known of it before."""
        for stream, (seq, claim, _) in begun.items():
            self._drop(stream)
            self._streams[stream] = _Stream(seq, claim)

    def number(self, stream: str, parts: Sequence[bytes], end: bool) -> list[Pushed]:
        """Data to numbered chunks. Changes nothing: it counts when it is `sending`.

        The data that failed last gets the same numbers again, and only it.
        """
        state = self._streams.get(stream) or self._unsure[stream]
        if len(parts) == 1 and state.failed is None and not state.sending:
            return [Pushed(stream, state.next_seq, parts[0], end, state.claim)]
        failed = _Failed.of(state.sending) if state.sending else state.failed
        first, late_end = state.next_seq, False
        if failed is not None:
            if (end or not failed.end) and _print(parts) == failed[2:]:
                # An end that was not asked for then is a chunk of its own: within theirs it could be a duplicate.
                late_end = end and not (failed.end and failed.chunks == len(parts))
            else:  # whether the failed chunks are stored is unknown: nothing else must pass for them
                first += failed.chunks
        last = len(parts) - 1
        chunks = [
            Pushed(stream, first + i, part, end and not late_end and i == last, state.claim)
            for i, part in enumerate(parts)
        ]
        return [*chunks, Pushed(stream, first + len(parts), b"", True, state.claim)] if late_end else chunks

    def sending(self, chunks: Sequence[Pushed]) -> None:
        """These may or may not be in the log, until they are `stored` or `refused`. Whatever ends a push, this is then
        true."""
        streams: dict[str, list[Pushed]] = {}
        for chunk in chunks:
            streams.setdefault(chunk[0], []).append(chunk)
        for stream, sent in streams.items():
            _, seq, _, _, claim = sent[0]
            state = self._drop(stream)
            if state is None or state.next_seq != seq:
                state = _Stream(seq, claim)
            state.claim, state.sending, state.failed = claim, sent, None
            self._unsure[stream] = state

    def stored(self, chunks: Sequence[Pushed]) -> None:
        """These are in the log."""
        for stream, seq, _, end, claim in chunks:
            state = self._drop(stream) or _Stream(seq, claim)
            if not end:  # else whatever comes under this name is a new stream, and asks for a number of its own
                state.next_seq, state.claim = seq + 1, claim
                state.sending, state.failed, state.unsure = (), None, False
                self._streams[stream] = state
        self._forget()

    def failed(self, streams: Iterable[str]) -> None:
        """What was on its way of these streams may be stored."""
        for stream in streams:
            state = self._unsure.get(stream)
            if state is not None and state.sending:
                state.failed, state.sending = _Failed.of(state.sending), ()
                state.unsure, state.failed_s = True, time.monotonic()
                self._unsure.move_to_end(stream)

    def refused(self, streams: Iterable[str]) -> None:
        """What was on its way of these streams was not stored, this time."""
        for stream in streams:
            state = self._unsure.get(stream)
            if state is not None and state.sending and not state.unsure:
                state.failed, state.sending = _Failed.of(state.sending), ()
                self._streams[stream] = self._unsure.pop(stream)
        self.failed(streams)
        self._forget()

    def fenced(self, streams: Iterable[str]) -> None:
        """Another producer has these streams: nothing more of them is numbered until they begin anew."""
        for stream in streams:
            self._drop(stream)
            self._fenced[stream] = None
        self._forget()

    def resumed(self, stream: str, begun: Begun | None) -> None:
        """The stream goes on from here; None: its next chunk begins a new life."""
        self._drop(stream)
        if begun is not None:
            self.begin({stream: begun})

    def _drop(self, stream: str) -> _Stream | None:
        if self._fenced:
            self._fenced.pop(stream, None)
        return self._streams.pop(stream, None) or self._unsure.pop(stream, None)

    def _forget(self) -> None:
        for remembered in (self._streams, self._fenced):
            while len(remembered) > self._max_streams:
                remembered.popitem(last=False)
        while self._unsure:
            stream, state = next(iter(self._unsure.items()))
            if state.sending or time.monotonic() - state.failed_s < self._idle_s:
                break
            del self._unsure[stream]
