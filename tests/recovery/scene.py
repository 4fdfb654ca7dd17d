"""A small scene for one crash: chunks pushed in steps, workers that are changed, and the verifier at the end."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import redis

from pipeline.broker import topic as topics
from tests.chaos.oracle import Oracle
from tests.chaos.plan import RATE_HZ, Sent, draw
from tests.chaos.verifier import Verdict, verify
from tests.harness import until
from tests.recovery.child import Change, Child

TOPIC, LEASE_MS = "audio", 500


class Piece(NamedTuple):
    """One chunk: of which stream (a place in `sent`), which of its chunks."""

    stream: int
    chunk: int


class Scene:
    """Streams to be pushed, and who works on them.

    Args:
        sent: the streams, all of which are pushed in the end.
        bundles: group -> bundle.
    """

    def __init__(
        self,
        client: redis.Redis,
        url: str,
        folder: Path,
        bundles: dict[str, Path],
        sent: Sequence[Sent],
        partitions: int = 4,
    ) -> None:
        self.client, self.sent, self.partitions = client, sent, partitions
        self._url, self._folder, self._bundles = url, folder, bundles
        self.children: list[Child] = []
        topics.create(client, topics.Topic(TOPIC, RATE_HZ, "int16", 1, partitions))

    def pieces(self) -> list[Piece]:
        """All chunks, the streams taking turns."""
        depth = max(len(each.seqs) for each in self.sent)
        return [Piece(s, c) for c in range(depth) for s, each in enumerate(self.sent) if c < len(each.seqs)]

    def key(self, stream: int, kind: str) -> str:
        """The key of a stream's partition: `in`, or `<group>:out` and the like."""
        partition = zlib.crc32(self.sent[stream].stream.encode()) % self.partitions
        return f"sb:{{{TOPIC}/{partition}}}:{kind}"

    def push(self, pieces: Iterable[Piece]) -> None:
        with self.client.pipeline(transaction=False) as pipe:
            for stream, chunk in pieces:
                each = self.sent[stream]
                start, stop = (each.stops[chunk - 1] if chunk else 0), each.stops[chunk]
                entry = {"stream": each.stream, "seq": each.seqs[chunk], "data": each.signal[start:stop].tobytes()}
                pipe.xadd(self.key(stream, "in"), {**entry, **({"end": 1} if chunk == len(each.seqs) - 1 else {})})
            pipe.execute()

    def worker(self, *changes: Change, group: str = "scores", **settings: object) -> Child:
        given = {
            "url": self._url,
            "topic": TOPIC,
            "group": group,
            "bundle": self._bundles[group],
            "lease_ms": LEASE_MS,
            "publish": "chunks",
            "read_entries": 16,
            "max_batch": 2,  # a backlog of a few chunks is one already: commits travel while the next batch runs
            "log_format": "json",
            "status_dir": self._folder / "status",
            **settings,
        }
        environment = {f"STATEBELT_{name.upper()}": str(value) for name, value in given.items()}
        child = Child(environment, self._folder / f"child-{len(self.children)}.log", changes)
        self.children.append(child)
        return child

    def drained(self, group: str = "scores", patience_s: float = 20.0) -> bool:
        """Wait until the group has committed all that was pushed. False: it never will, it seems."""

        def done() -> bool:
            # By the offset, not the lag: a server that was broken on purpose may count wrongly.
            for partition in range(self.partitions):
                log = f"sb:{{{TOPIC}/{partition}}}:in"
                if self.client.xlen(log):
                    offsets = [
                        i["last-delivered-id"] for i in self.client.xinfo_groups(log) if i["name"].decode() == group
                    ]
                    if offsets != [self.client.xinfo_stream(log)["last-generated-id"]]:
                        return False
            return True

        try:
            until(done, "the group to have committed all", patience_s)
        except AssertionError:
            return False
        return True

    def verdict(self, group: str = "scores", *, every_chunk: bool = True) -> Verdict:
        oracle = Oracle(self._bundles[group])
        return verify(self.client, TOPIC, group, self.partitions, self.sent, oracle, every_chunk=every_chunk)

    def close(self) -> None:
        for child in self.children:
            child.kill()

    def told(self) -> str:
        """The workers' logs, for a message."""
        return "\n".join(f"--- {child.log.name}\n{child.log.read_text()[-3000:]}" for child in self.children)


def some_streams() -> list[Sent]:
    """A few streams of real speech, some 150 chunks."""
    return draw(5, 0, 90, 6, repeats=0.0).sent()


def pair() -> list[Sent]:
    """Two streams whose second chunks complete no frame: nothing to say of them, and yet their state must be kept."""
    speech = draw(9, 0, 40, 2, repeats=0.0).sent()[0].signal[:3000]
    stops = [330, 370, 900, 1400, 3000]
    return [
        Sent(name, np.ascontiguousarray(speech[::step][: stops[-1]]), list(range(7, 12)), stops)
        for name, step in (("s", 1), ("t", -1))
    ]
