"""Which rows a commit writes, where not every one does (`row_every_chunks`), and how far the others are behind.

A row need not be stored with every chunk: results and offset tell what was published, and what a row lacks can be
replayed from the log, for a step is deterministic. So a stream's row is written with every k-th of its chunks, when it
ends, and when it has been behind for `MAX_BEHIND_MS` of log time. The oldest chunk that some row lacks is where a
replay begins.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.chunk import Chunk

MAX_BEHIND_MS = 10_000
"""Log time after which a row is written even if its stream had few chunks: a takeover replays no more than that, and
what was read."""

_LAST_SEQ = 2**64 - 1


class Behind:
    """The streams of one partition whose rows lack something.

    Args:
        every_chunks: of a stream, between two commits of its row; 1: no row is ever behind.

    >>> behind = Behind(2)
    >>> chunk = Chunk(b"5-1", 5, "s", 0, None, False)
    >>> behind.due([chunk]), behind.upto
    ([], b'5-0')
    >>> behind.due([Chunk(b"6-0", 6, "s", 1, None, False)]), behind.upto
    (['s'], b'')
    """

    def __init__(self, every_chunks: int) -> None:
        self._every = every_chunks
        self.delays = every_chunks > 1
        # stream: [id of the first chunk its row lacks, that id's time, how many it lacks], in order of these ids
        self._lacking: dict[str, list[int | bytes]] = {}

    def __len__(self) -> int:
        return len(self._lacking)

    @property
    def upto(self) -> bytes:
        """The rows of all streams hold what chunks up to this id did; empty: they lack nothing."""
        if not self._lacking:
            return b""
        first = next(iter(self._lacking.values()))[0]
        assert isinstance(first, bytes)
        return _before(first)

    def due(self, done: Iterable[Chunk]) -> list[str]:
        """The streams whose rows are to be written now that these chunks, in log order, have been run."""
        if not self.delays:
            return list(dict.fromkeys([chunk.stream for chunk in done]))
        lacking, due, now_ms = self._lacking, dict[str, None](), 0
        for chunk in done:
            entry = lacking.setdefault(chunk.stream, [chunk.id, chunk.ms, 0])
            entry[2] += 1  # type: ignore[operator]
            now_ms = chunk.ms
            if chunk.end or entry[2] >= self._every:  # type: ignore[operator]
                due[chunk.stream] = None
        for stream, (_, first_ms, _) in lacking.items():
            if now_ms - first_ms <= MAX_BEHIND_MS:  # type: ignore[operator]
                break
            due[stream] = None
        for stream in due:
            del lacking[stream]
        return list(due)

    def all(self) -> list[str]:
        """Every stream whose row lacks something; from now on none does."""
        streams = list(self._lacking)
        self._lacking.clear()
        return streams


def _before(id_: bytes) -> bytes:
    """The id right before this one.

    >>> _before(b"7-3"), _before(b"7-0")
    (b'7-2', b'6-18446744073709551615')
    """
    ms, seq = map(int, id_.split(b"-"))
    return b"%d-%d" % ((ms, seq - 1) if seq else (ms - 1, _LAST_SEQ))
