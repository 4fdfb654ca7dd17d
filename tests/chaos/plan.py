"""What is pushed: streams of real speech, cut into chunks, some of them sent again. All drawn from a seed.

A plan is a folder of arrays, so that a producer which is killed and started anew goes on in it without drawing it
again, and the verifier knows what was to be pushed without asking the producer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from tests.harness import DATA

RATE_HZ = 8000
RECORDING = Path(__file__).parents[2] / "pipeline" / "recordings" / "digits.flac"

CHUNK = np.dtype(
    [
        ("batch", "i4"),  # which push it belongs to
        ("stream", "i4"),
        ("seq", "i8"),
        ("start", "i8"),  # in the signals of the plan
        ("stop", "i8"),
        ("end", "?"),
        ("again", "?"),  # an earlier chunk, sent once more
    ]
)


@dataclass(frozen=True)
class Sent:
    """One stream as it was pushed: `signal` int16 `[N]`; chunk i is number `seqs[i]` and ends at sample `stops[i]`."""

    stream: str
    signal: np.ndarray
    seqs: list[int]
    stops: list[int]


@dataclass(frozen=True)
class Plan:
    """What one producer pushes: names of streams, all their signals end to end, rows of `CHUNK` in order."""

    prefix: str
    signals: np.ndarray
    chunks: np.ndarray

    def name(self, stream: int) -> str:
        return f"{self.prefix}{stream}"

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        np.save(folder / "signals.npy", self.signals)
        np.save(folder / "chunks.npy", self.chunks)
        (folder / "prefix").write_text(self.prefix)

    @classmethod
    def open(cls, folder: Path) -> Plan:
        return cls(
            (folder / "prefix").read_text(),
            np.load(folder / "signals.npy", mmap_mode="r"),
            np.load(folder / "chunks.npy"),
        )

    def sent(self, seqs: np.ndarray | None = None) -> list[Sent]:
        """The streams for the verifier; `seqs` of all rows where the producer's library numbered them itself."""
        numbers = self.chunks["seq"] if seqs is None else seqs
        first = np.flatnonzero(~self.chunks["again"])
        order = first[np.argsort(self.chunks["stream"][first], kind="stable")]
        streams = self.chunks["stream"][order]
        found = []
        for rows in np.split(order, np.flatnonzero(np.diff(streams)) + 1):
            start, stops = int(self.chunks["start"][rows[0]]), self.chunks["stop"][rows]
            signal = np.asarray(self.signals[start : int(stops[-1])])
            name = self.name(int(self.chunks["stream"][rows[0]]))
            found.append(Sent(name, signal, numbers[rows].tolist(), (stops - start).tolist()))
        return found


@cache
def words() -> list[np.ndarray]:
    """Spoken digits: the corpus, or (where it is not there) pieces of the shipped recording."""
    files = sorted((DATA / "fsdd").rglob("*.flac"))[::4]
    if files:
        return [soundfile.read(file, dtype="int16")[0] for file in files]
    whole, rate = soundfile.read(RECORDING, dtype="int16")
    assert rate == RATE_HZ
    return np.array_split(whole, len(whole) // 4000)


def draw(seed: int, producer: int, chunks: int, open_streams: int, repeats: float = 0.04) -> Plan:
    """At least `chunks` chunks, `open_streams` streams at a time; each that ends makes room for another.

    Chunks last 5 to 60 ms mostly; some are empty or a few samples, some last half a second. A share of `repeats` is
    sent again, at once or much later, also after its stream's end.
    """
    rng = np.random.default_rng([seed, producer])
    signals: list[np.ndarray] = []
    rows: list[tuple[int, int, int, int, int, bool, bool]] = []
    live: dict[int, list[int]] = {}  # stream -> seq, place, end
    batch = streams = samples = pushed = 0
    while live or pushed < chunks:
        while len(live) < open_streams and pushed < chunks:
            signal = _signal(rng)
            signals.append(signal)
            live[streams] = [int(rng.integers(0, 2**40)), samples, samples + len(signal)]
            samples += len(signal)
            streams += 1
        for stream in rng.permutation(list(live))[: rng.integers(1, open_streams + 1)].tolist():
            seq, place, stop = live[stream]
            upto = min(stop, place + _length(rng))
            rows.append((batch, stream, seq, place, upto, upto == stop, False))
            live[stream][:2] = seq + 1, upto
            pushed += 1
            if upto == stop:
                del live[stream]
        for _ in range(rng.binomial(open_streams // 2, repeats)):
            back = min(len(rows), int(rng.choice([10, 200, 3000])))
            earlier = rows[len(rows) - 1 - int(rng.integers(0, back))]
            rows.append((batch, *earlier[1:6], True))
        batch += 1
    return Plan(f"p{producer}-", np.concatenate(signals), np.array(rows, CHUNK))


def _signal(rng: np.random.Generator) -> np.ndarray:
    gap = np.zeros(int(rng.integers(0, 1600)), np.int16)
    picked = [words()[i] for i in rng.integers(0, len(words()), rng.integers(1, 9))]
    return np.concatenate([part for word in picked for part in (word, gap)])


def _length(rng: np.random.Generator) -> int:
    kind = rng.random()
    if kind < 0.05:
        return int(rng.integers(0, 4))
    if kind < 0.08:
        return int(rng.integers(1600, 4800))
    return int(rng.integers(40, 480))
