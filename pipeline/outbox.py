"""What blocking and asyncio producers share: checking, converting, splitting and numbering chunks. No I/O.

`seq` makes resending safe: a worker drops what it has seen. So a chunk keeps its number until it is known to
be stored: push the same samples again after a failure, and they go out under the same numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
        x = carried(samples, self._spec, f"stream {check_stream(stream)!r}")
        data = x.astype(self._dtype, copy=False).tobytes()
        size = self._chunk_samples * self.sample_bytes
        return [data[at : at + size] for at in range(0, len(data), size)] or [b""]


@dataclass(slots=True)
class _Stream:
    next_seq: int
    claim: str
    failed: list[Pushed] = field(default_factory=list)
    fenced: bool = False


class Outbox:
    """Numbers the chunks of one producer's streams.

    Args:
        max_streams: beyond so many, those idle longest are forgotten, of which all is stored. Nothing is lost by it:
            the server knows where they stand, and is asked when they are pushed to again.
    """

    def __init__(self, max_streams: int = MAX_STREAMS) -> None:
        self._streams: OrderedDict[str, _Stream] = OrderedDict()
        self._max_streams = max_streams

    def __len__(self) -> int:
        return len(self._streams)

    def new(self, streams: Iterable[str]) -> list[str]:
        """Those of `streams` that have no number to go on from. Raises Fenced for one that was taken from us."""
        fenced = [stream for stream in streams if stream in self._streams and self._streams[stream].fenced]
        if fenced:
            raise Fenced(f"nothing is sent: {taken(fenced)}")
        return [stream for stream in streams if stream not in self._streams]

    def begin(self, begun: Mapping[str, Begun]) -> None:
        """The next chunk of each of these streams has this number, whatever was known of it before."""
        for stream, (seq, claim, _) in begun.items():
            self._streams[stream] = _Stream(seq, claim)
            self._streams.move_to_end(stream)

    def number(self, stream: str, parts: Sequence[bytes], end: bool) -> list[Pushed]:
        """Data to numbered chunks. Changes nothing: it counts when it is `sending`.

        The data that failed last gets the same numbers again, and only it.
        """
        state = self._streams[stream]
        first = state.next_seq
        if state.failed:
            # Whether the failed chunks are stored is unknown. Nothing else must pass for them.
            first = state.failed[-1].seq + 1
            same = isinstance(state.failed[0].data, Given) == isinstance(parts[0], Given)
            same &= b"".join(p.data for p in state.failed) == b"".join(parts)
            if same and (end or not state.failed[-1].end):
                # An end that was not asked for then is a chunk of its own: within theirs it could be a duplicate.
                late_end = not state.failed[-1].end and end
                return [*state.failed, *([Pushed(stream, first, b"", True, state.claim)] if late_end else [])]
        last = len(parts) - 1
        return [Pushed(stream, first + i, part, end and i == last, state.claim) for i, part in enumerate(parts)]

    def sending(self, chunks: Sequence[Pushed]) -> None:
        """These may or may not be in the log, until they are `stored`. Whatever ends a push, this is then true."""
        streams: dict[str, list[Pushed]] = {}
        for chunk in chunks:
            streams.setdefault(chunk.stream, []).append(chunk)
        for stream, unknown in streams.items():
            self._streams[stream] = _Stream(unknown[0].seq, unknown[0].claim, unknown)

    def stored(self, chunks: Sequence[Pushed]) -> None:
        """These are in the log."""
        for chunk in chunks:
            if chunk.end:
                # Whatever comes under this name later is a new stream, and asks for a number of its own.
                self._streams.pop(chunk.stream, None)
            else:
                self._streams[chunk.stream] = _Stream(chunk.seq + 1, chunk.claim)
                self._streams.move_to_end(chunk.stream)
        self._forget()

    def fenced(self, streams: Iterable[str]) -> None:
        """Another producer has these streams: nothing more of them is numbered until they begin anew."""
        for stream in streams:
            self._streams[stream] = _Stream(0, "", fenced=True)

    def resumed(self, stream: str, begun: Begun | None) -> None:
        """The stream goes on from here; None: its next chunk begins a new life."""
        self._streams.pop(stream, None)
        if begun is not None:
            self.begin({stream: begun})

    def _forget(self) -> None:
        for _ in range(len(self._streams) - self._max_streams):
            stream, state = self._streams.popitem(last=False)
            if state.failed:  # its numbers are nowhere else
                self._streams[stream] = state
