"""Speaking and listening at once: chunks go out at real-time pace, results are read in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.cli.demo.stage import DemoFailed, Stage
from pipeline.cli.playback import Recording, paced, rounds
from pipeline.consumer import Consumer, Result
from pipeline.output import Event
from pipeline.producer import Producer

_PATIENCE_S = 15.0
_READ_S = 0.2


@dataclass
class Heard:
    """What came back.

    words: events of each stream, in order. latency_s: of every chunk, from the call of push to the result in hand.
    ended: streams that were processed to their end. worker_cpu_s: None where the system does not say.
    """

    words: dict[str, list[Event]]
    latency_s: list[float] = field(default_factory=list)
    notes: list[dict[str, object]] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    chunks: int = 0
    worker_cpu_s: float | None = None


def play(
    stage: Stage,
    producer: Producer,
    consumer: Consumer,
    recordings: Sequence[Recording],
    step: int,
    *,
    on_word: Callable[[str, Event], None],
    on_spoken: Callable[[float], None],
) -> Heard:
    """Push all recordings as parallel streams and read their results, until every stream has ended.

    Raises DemoFailed if the worker dies or results fail to come.
    """
    heard = Heard({recording.stream: [] for recording in recordings})
    sent_s: dict[tuple[str, int], float] = {}
    rate_hz = producer.spec.sample_rate_hz

    def take(result: Result) -> None:
        heard.latency_s.append(time.monotonic() - sent_s[result.stream, result.seq])
        heard.notes += result.notes
        for event in result.events:
            heard.words[result.stream].append(event)
            on_word(result.stream, event)
        if result.end:
            heard.ended.add(result.stream)

    def listen_until(due_s: float) -> None:
        while (left_s := due_s - time.monotonic()) > 0 and len(heard.ended) < len(recordings):
            stage.check()
            if left_s < 0.001:  # Redis counts in milliseconds
                time.sleep(left_s)
            else:
                for result in consumer.read(timeout_s=min(left_s, _READ_S)):
                    take(result)
            on_spoken(time.monotonic() - start_s)

    cpu_s = stage.worker_cpu_s()
    start_s = time.monotonic()
    for part in paced(rounds(recordings, step, end=True), rate_hz, listen_until, start_s):
        now_s = time.monotonic()
        seqs = producer.push_many(part.items)
        sent_s.update({(item[0], seq): now_s for item, seq in zip(part.items, seqs, strict=True)})
        heard.chunks += len(seqs)
    listen_until(time.monotonic() + _PATIENCE_S)
    if len(heard.ended) < len(recordings):
        raise DemoFailed(
            f"{len(recordings) - len(heard.ended)} of {len(recordings)} streams had no end {_PATIENCE_S:.0f} s after "
            f"their last chunk; the worker's log:\n{stage.log_tail()}"
        )
    after_s = stage.worker_cpu_s()
    heard.worker_cpu_s = after_s - cpu_s if after_s is not None and cpu_s is not None else None
    return heard
