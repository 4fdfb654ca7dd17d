"""What blocking and asyncio producers share: checking, converting, splitting and numbering chunks. No I/O.

`seq` makes resending safe: a worker drops what it has seen. So a chunk keeps its number until it is known to
be stored: push the same samples again after a failure, and they go out under the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.audio import to_sample_type
from pipeline.broker.appender import Pushed
from pipeline.broker.keys import check_stream
from pipeline.component import Array
from pipeline.errors import ChunkRejected
from pipeline.manifest import InputSpec


@dataclass(slots=True)
class _Stream:
    next_seq: int
    failed: list[Pushed]


class Outbox:
    """Numbers the chunks of one producer's streams.

    Args:
        spec: what the topic carries.
        max_chunk_bytes: longer samples are split; a cut changes no byte of a result.
    """

    def __init__(self, spec: InputSpec, max_chunk_bytes: int) -> None:
        self._spec = spec
        self._dtype = np.dtype(spec.sample_type).newbyteorder("<")
        self._sample_bytes = self._dtype.itemsize * spec.channels
        self._chunk_samples = max(1, max_chunk_bytes // self._sample_bytes)
        self._streams: dict[str, _Stream] = {}
        self._above_ended = 0

    def new(self, streams: Iterable[str]) -> list[str]:
        """Those of `streams` that have no number to go on from. Raises ChunkRejected: `bad_stream`."""
        return [stream for stream in streams if check_stream(stream) not in self._streams]

    def begin(self, streams: Iterable[str], seq: int) -> None:
        """The next chunk of each of `streams` is number `seq`; higher where a stream that ended here had more."""
        first = max(seq, self._above_ended)
        self._streams.update({stream: _Stream(first, []) for stream in streams})

    def pack(self, stream: str, samples: Array, end: bool) -> list[Pushed]:
        """Samples to numbered chunks. Changes nothing: a push that is refused here was never made.

        The samples that failed last get the same numbers again, and only they.

        Raises ChunkRejected: `wrong_type`, `wrong_shape`, `not_finite`, `bad_stream`.
        """
        data = self._encode(stream, samples)
        size = self._chunk_samples * self._sample_bytes
        parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
        state = self._streams[stream]
        first = state.next_seq
        if state.failed:
            # Whether the failed chunks are stored is unknown. Nothing else must pass for them.
            first = state.failed[-1].seq + 1
            if b"".join(p.data for p in state.failed) == data and (end or not state.failed[-1].end):
                # An end that was not asked for then is a chunk of its own: within theirs it could be a duplicate.
                late_end = [Pushed(stream, first, b"", True)] if end and not state.failed[-1].end else []
                return [*state.failed, *late_end]
        last = len(parts) - 1
        return [Pushed(stream, first + i, part, end and i == last) for i, part in enumerate(parts)]

    def sending(self, chunks: Sequence[Pushed]) -> None:
        """These may or may not be in the log, until they are `stored`. Whatever ends a push, this is then true."""
        streams: dict[str, list[Pushed]] = {}
        for chunk in chunks:
            streams.setdefault(chunk.stream, []).append(chunk)
        for stream, unknown in streams.items():
            self._streams[stream] = _Stream(unknown[0].seq, unknown)

    def stored(self, chunks: Sequence[Pushed]) -> None:
        """These are in the log."""
        for chunk in chunks:
            if chunk.end:
                # Whatever comes under this name later is a new stream, and asks for a number of its own.
                self._streams.pop(chunk.stream, None)
                self._above_ended = max(self._above_ended, chunk.seq + 1)
            else:
                self._streams[chunk.stream] = _Stream(chunk.seq + 1, [])

    def _encode(self, stream: str, samples: Array) -> bytes:
        spec = self._spec
        x = np.asarray(samples)
        if x.dtype not in (np.int16, np.float32):
            raise ChunkRejected(
                "wrong_type", f"stream {stream!r}: samples are {x.dtype}; expected int16 or float32: use .astype()"
            )
        if x.ndim == 1 and spec.channels == 1:
            x = x[:, None]
        if x.ndim != 2 or x.shape[1] != spec.channels:
            expected = f"[N, {spec.channels}]" + (" or [N]" if spec.channels == 1 else "")
            raise ChunkRejected("wrong_shape", f"stream {stream!r}: shape {list(x.shape)}; expected {expected}")
        if x.dtype == np.float32 and not np.isfinite(x).all():
            raise ChunkRejected("not_finite", f"stream {stream!r}: samples hold NaN or infinity; repair them first")
        return to_sample_type(x, spec.sample_type).astype(self._dtype, copy=False).tobytes()
