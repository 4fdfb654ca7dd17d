"""Who reads: every result's time of arrival, and the whole of it for a few streams that are compared byte for byte."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import redis

from pipeline.broker.entries import Entry, Raw, fields_of
from pipeline.broker.reader import read_raw
from pipeline.broker.results import BEGINNING

Parse = Callable[[dict[bytes, bytes]], tuple[bytes, bytes, bool]]
"""An entry's fields to (stream, seq, end)."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles: of what is kept for later there are hundreds of thousands of lists, and no cycle. A search
    took 20 ms of the server's core."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Reading:
    """Reads the results logs `keys` from their beginning. `at` is when each (stream, seq) could be read."""

    def __init__(self, client: redis.Redis, keys: Sequence[str], parse: Parse) -> None:
        self._client, self._parse = client, parse
        self._unseen: list[tuple[float, list[Raw]]] = []
        self._positions = dict.fromkeys(keys, BEGINNING)
        self.at: dict[tuple[bytes, bytes], float] = {}
        self.kept: defaultdict[bytes, list[Entry]] = defaultdict(list)
        self.ended = 0
        self.last_s = 0.0

    def forget(self) -> None:
        """Before the next load."""
        self.at.clear()
        self.kept.clear()
        self.ended = 0

    def _told(self, raw: Raw) -> tuple[bytes, bytes, bool]:
        """As `parse`, without a dictionary of nearly every result."""
        flat = raw[1]
        if flat[0] == b"stream" and flat[2] == b"seq":
            return flat[1], flat[3], flat[-2] == b"end"
        return self._parse(fields_of(flat))

    @_uncollected()
    def until(
        self,
        done: Callable[[], bool],
        keep: Collection[bytes],
        deadline_s: float,
        check: Callable[[], None],
        least: int = 0,
    ) -> None:
        """Read until `done`; entries of the streams `keep` are kept. Raises RuntimeError after `deadline_s`.

        least: it takes so many entries at the least. Until they are there each is only given its time: who looks on
        shares a core with who is measured, and looks closer afterwards.
        """
        end_s, count = time.monotonic() + deadline_s, 0
        while not done():
            found = read_raw(self._client, self._positions, 1000, 200)
            now = time.time()
            for key, entries in found.items():
                self._positions[key] = entries[-1][0]
                self._unseen.append((now, entries))
                count += len(entries)
            if count >= least:
                self._look(keep)
            check()
            if time.monotonic() > end_s:
                self._look(keep)
                raise RuntimeError(f"only {len(self.at)} results ({self.ended} ends) in {deadline_s:.0f} s")

    def _look(self, keep: Collection[bytes]) -> None:
        unseen, self._unseen = self._unseen, []
        for at_s, entries in unseen:
            for raw in entries:
                stream, seq, last = self._told(raw)
                self.at[stream, seq] = self.last_s = at_s
                self.ended += last
                if stream in keep:
                    self.kept[stream].append((raw[0], fields_of(raw[1])))
