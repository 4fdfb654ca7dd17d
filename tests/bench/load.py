"""Who pushes: a process of its own, by a schedule that nothing can slow down (open loop).

    python -m tests.bench.load URL PCM.npy SENT.npy LOAD

It says `ready` when it is (the streams that must be known are), and begins when it is told to. Chunks are due at times
that the schedule alone decides. Every push is noted: which stream, its seq, when it was pushed and when it was due;
latencies are counted from both.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.cli.memory import collect_seldom, keep_freed
from tests.bench.cores import on
from tests.bench.figures import CHUNK_MS

Item = tuple[str, np.ndarray, bool]
Push = Callable[[list[Item]], list[int]]


@dataclass(frozen=True)
class Load:
    """`turns` turns of `turn_ms`; in each, `streams` of the `known` streams have a chunk, spread over `ticks` moments.

    With known == streams it is live audio: each stream a chunk a turn. With more, whose turn it is goes around.

    Attributes:
        wire: how a chunk is pushed: `belt` (Producer), `plain` (XADD of its fields), `faststream` (its own format).
        turn_ms: 0: as fast as they go.
        end: does the last turn end the streams?
        warm: before it is ready, every known stream gets a chunk, as fast as they go.
    """

    wire: str
    prefix: str
    streams: int
    known: int
    turns: int
    turn_ms: float = CHUNK_MS
    ticks: int = 20
    end: bool = True
    warm: bool = False
    rate_hz: int = 16_000

    @property
    def chunks(self) -> int:
        return self.streams * self.turns

    @property
    def size(self) -> int:
        return self.rate_hz * CHUNK_MS // 1000

    @property
    def seconds(self) -> float:
        return self.turns * self.turn_ms / 1000

    def name(self, n: int) -> str:
        return f"{self.prefix}-{n}"

    def chunk(self, recording: np.ndarray, n: int, k: int) -> np.ndarray:
        """The k-th chunk of stream n: everyone hears the recording from another place on."""
        at = (n * 7919 + k * self.size) % (len(recording) - self.size)
        return recording[at : at + self.size]

    def signal(self, recording: np.ndarray, n: int) -> np.ndarray:
        """All that stream n is given."""
        first, last = n // self.streams, self.known // self.streams
        count = len(range(first, self.turns, last)) + self.warm
        return np.concatenate([self.chunk(recording, n, k) for k in range(count)])

    def moments(self) -> Iterator[tuple[float, list[tuple[int, int, bool]]]]:
        """When (in seconds from the start), and whose which chunk, and whether it is the last.

        >>> [w for _, who in Load("plain", "s", streams=2, known=4, turns=3, ticks=1).moments() for w in who]
        [(0, 0, False), (1, 0, False), (2, 0, True), (3, 0, True), (0, 1, True), (1, 1, True)]
        """
        assert self.known % self.streams == 0
        around = self.known // self.streams
        parts = np.array_split(np.arange(self.streams), min(self.ticks, self.streams))
        for turn in range(self.turns):
            base, k = turn % around * self.streams, turn // around + self.warm
            last = self.end and turn + around >= self.turns
            for tick, members in enumerate(parts):
                due_s = (turn + tick / len(parts)) * self.turn_ms / 1000
                yield due_s, [(base + n, k, last) for n in members.tolist()]


@dataclass(frozen=True)
class Sent:
    """What was pushed, one row a chunk, and what pushing cost."""

    stream: np.ndarray
    seq: np.ndarray
    pushed_s: np.ndarray
    due_s: np.ndarray
    cpu_s: float


class Pusher:
    """A producer that runs: `ready`, `go`, `wait`."""

    def __init__(self, url: str, load: Load, recording: Path, folder: Path, core: int) -> None:
        self._path = folder / f"{load.prefix}.npy"
        command = [sys.executable, "-m", "tests.bench.load", url, str(recording), str(self._path)]
        with on(core):
            self._process = subprocess.Popen(
                [*command, json.dumps(asdict(load))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )

    def ready(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the producer failed; its error is above")

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def check(self) -> None:
        """Raises RuntimeError if it failed."""
        if self._process.poll() not in (None, 0):
            raise RuntimeError("the producer failed; its error is above")

    def wait(self) -> Sent:
        self._process.wait(120)
        self.check()
        table = np.load(self._path)
        return Sent(table[0, :-1].astype(int), table[1, :-1].astype(int), table[2, :-1], table[3, :-1], table[0, -1])

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _belt(url: str) -> Push:
    from pipeline.producer import Producer

    return Producer("audio", url=url).push_many


def _fields(url: str, make: Callable[[Item, int], dict[str, object]]) -> Push:
    """Pipelined XADD, seqs counted here."""
    from pipeline.broker.connection import connect
    from tests.bench.loop import IN

    client, seqs = connect(url), dict[str, int]()

    def push(items: list[Item]) -> list[int]:
        with client.pipeline(transaction=False) as pipe:
            for item in items:
                seqs[item[0]] = seqs.get(item[0], -1) + 1
                pipe.xadd(IN, make(item, seqs[item[0]]))  # type: ignore[arg-type]
            pipe.execute()
        return [seqs[name] for name, _, _ in items]

    return push


def _plain(item: Item, seq: int) -> dict[str, object]:
    stream, samples, end = item
    return {"stream": stream, "seq": seq, "data": samples.tobytes(), **({"end": 1} if end else {})}


def _faststream(url: str) -> Push:
    """As `broker.publish(data, stream=IN, headers=...)` writes it."""
    from faststream.redis.parser import BinaryMessageFormatV1

    def make(item: Item, seq: int) -> dict[str, object]:
        stream, samples, end = item
        headers = {"stream": stream, "seq": str(seq), **({"end": "1"} if end else {})}
        writing = BinaryMessageFormatV1.encode(
            message=samples.tobytes(), reply_to=None, headers=headers, correlation_id=f"{stream}/{seq}"
        )
        try:
            writing.send(None)  # it never waits, so no event loop is needed
        except StopIteration as done:
            return {"__data__": done.value}
        raise RuntimeError("FastStream's format waits for something now")

    return _fields(url, make)


WIRES: dict[str, Callable[[str], Push]] = {
    "belt": _belt,
    "plain": lambda url: _fields(url, _plain),
    "faststream": _faststream,
}


def main(url: str, pcm: str, path: str, text: str) -> None:
    load, recording = Load(**json.loads(text)), np.load(pcm)
    push = WIRES[load.wire](url)
    for wave in np.array_split(np.arange(load.known), -(-load.known // 500)) if load.warm else ():
        push([(load.name(n), load.chunk(recording, n, 0), False) for n in wave.tolist()])
    collect_seldom()
    keep_freed()
    print("ready", flush=True)
    sys.stdin.read()
    names = [load.name(n) for n in range(load.known)]
    sent: list[tuple[Sequence[int], Sequence[int], float, float]] = []
    began_s, before_s = time.time() + 0.02, time.process_time()
    for due_s, who in load.moments():
        items = [(names[n], load.chunk(recording, n, k), last) for n, k, last in who]
        if (wait_s := began_s + due_s - time.time()) > 0 and load.turn_ms:
            time.sleep(wait_s)
        pushed_s = time.time()
        sent.append(([n for n, _, _ in who], push(items), pushed_s, began_s + due_s))
    cpu_s = time.process_time() - before_s
    columns = (np.concatenate([np.broadcast_to(push[i], len(push[0])) for push in sent]) for i in range(4))
    np.save(path, np.array([[*column, cpu_s] for column in columns]))


if __name__ == "__main__":
    main(*sys.argv[1:])
