"""Silero through Redis: 256 streams at once, chunks of random sizes, the worker killed twice on the way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.bundle import load
from pipeline.consumer import Consumer
from tests.harness import WorkerProcess, make_producer, until

from .conftest import recordings
from .test_silero import theirs

STREAMS = 256


def test_256_streams_and_two_kills(adopted: Callable[..., Path], url: str, tmp_path: Path) -> None:
    path = adopted("silero-vad", "--head", "scores")
    bundle = load(path)
    rng = np.random.default_rng(1)
    speech = np.concatenate(list(recordings().values()))
    signals = {}
    for i in range(STREAMS):
        start, length = rng.integers(len(speech) - 40_000), rng.integers(8000, 40_000)
        signals[f"call-{i}"] = speech[start : start + length]
    scores: dict[str, list[bytes]] = defaultdict(list)
    ended: set[str] = set()

    def read(consumer: Consumer) -> int:
        found = consumer.read(timeout_s=0.1)
        for result in found:
            assert not result.notes
            if result.scores is not None:
                scores[result.stream].append(result.scores.tobytes())
            if result.end:
                ended.add(result.stream)
        return sum(map(len, scores.values()))

    with make_producer(url, bundle, max_backlog=100_000) as producer, Consumer(
        "audio", "digits", url=url, start="beginning"
    ) as consumer:  # fmt: skip
        position = dict.fromkeys(signals, 0)
        pushed = 0
        worker = WorkerProcess(url, path, tmp_path, lease_ms=1000)
        kills = 0
        while position:
            some = rng.permutation(list(position))[: int(rng.integers(1, len(position) + 1))].tolist()
            cuts = {name: position[name] + int(rng.integers(1, 6000)) for name in some}
            producer.push_many(
                [(name, signals[name][position[name] : cut], cut >= len(signals[name])) for name, cut in cuts.items()]
            )
            pushed += len(some)
            position |= cuts
            position = {name: at for name, at in position.items() if at < len(signals[name])}
            if kills < 2 and pushed > (kills + 1) * 700:
                seen = read(consumer)
                until(lambda seen=seen: read(consumer) > seen, "results, before the kill")  # type: ignore[misc]
                worker.kill()
                kills += 1
                worker = WorkerProcess(url, path, tmp_path, lease_ms=1000)
        with worker:
            until(lambda: read(consumer) >= 0 and len(ended) == STREAMS, "the end of all streams")
    assert kills == 2
    for name, samples in signals.items():
        assert b"".join(scores[name]) == theirs(samples).tobytes(), name
