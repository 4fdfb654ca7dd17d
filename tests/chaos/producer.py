"""A producer: pushes a plan at a steady rate, again and again until it is acknowledged. Made to be killed.

    python -m tests.chaos.producer FOLDER URL TOPIC PARTITIONS RATE BACK library|raw REPLICAS

A `raw` producer numbers its chunks itself and speaks plain XADD, as one in any other language would; it goes on some
pushes before where its journal stands, so whatever it does not know to be stored, and more, is pushed again. A
`library` producer is `pipeline.producer.Producer`, which numbers by itself: its numbers are kept for the verifier.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.broker.keys import log_key, partition_of
from tests.chaos.plan import Plan

JOURNAL = 3  # int64: pushes done, chunks sent again, 1 at the end


class Journal:
    """What outlives a kill: a file in memory that the kernel keeps."""

    def __init__(self, folder: Path) -> None:
        path = folder / "journal"
        if not path.exists():
            path.write_bytes(bytes(8 * JOURNAL))
        self._values = np.memmap(path, np.int64, "r+", shape=(JOURNAL,))

    pushes = property(lambda self: int(self._values[0]))
    again = property(lambda self: int(self._values[1]))
    finished = property(lambda self: bool(self._values[2]))

    def note(self, pushes: int, again: int, finished: bool = False) -> None:
        self._values[:] = pushes, self._values[1] + again, finished


def raw(url: str, topic: str, partitions: int, plan: Plan, replicas: int) -> Callable[[np.ndarray, bool], None]:
    """Send rows of the plan by XADD until the server, and so many replicas, have answered for every one of them."""
    client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=5.0)

    def send(rows: np.ndarray, _again: bool) -> None:
        while True:
            try:
                with client.pipeline(transaction=False) as pipe:
                    for row in rows:
                        name = plan.name(int(row["stream"]))
                        entry = {
                            "stream": name,
                            "seq": int(row["seq"]),
                            "data": plan.signals[row["start"] : row["stop"]].tobytes(),
                            **({"end": "1"} if row["end"] else {}),
                        }
                        pipe.xadd(log_key(topic, partition_of(name, partitions)), entry)
                    if replicas:
                        pipe.wait(replicas, 1000)
                    answers = pipe.execute()
                if not replicas or answers[-1] >= replicas:
                    return
            except (redis.ConnectionError, redis.TimeoutError):
                time.sleep(0.05)
            except redis.ResponseError as error:
                if not isinstance(error, redis.exceptions.ReadOnlyError) and "UNBLOCKED" not in str(error):
                    raise
                client.connection_pool.disconnect()  # a replica by now: who took over is found by its name

    return send


def library(url: str, topic: str, plan: Plan, folder: Path, replicas: int) -> Callable[[np.ndarray, bool], None]:
    """Send rows by `Producer`, which cannot repeat on purpose; the numbers it gave go to `seqs.npy`."""
    from pipeline.errors import BacklogFull, BrokerUnavailable
    from pipeline.producer import Producer

    def opened() -> Producer:
        while True:
            try:
                return Producer(topic, url=url, timeout_s=2.0, replicas=replicas)
            except BrokerUnavailable:
                time.sleep(0.05)

    producer = opened()
    seqs = np.lib.format.open_memmap(folder / "seqs.npy", "w+", np.int64, (len(plan.chunks),))
    done = 0

    def send(rows: np.ndarray, again: bool) -> None:
        nonlocal done
        if not again:
            items = [
                (plan.name(int(row["stream"])), plan.signals[row["start"] : row["stop"]], bool(row["end"]))
                for row in rows
            ]
            while True:
                try:
                    seqs[done : done + len(rows)] = producer.push_many(items)
                    break
                except (BrokerUnavailable, BacklogFull):
                    time.sleep(0.05)
        done += len(rows)

    return send


def main(folder: Path, url: str, topic: str, partitions: int, rate: float, back: int, kind: str, replicas: int) -> None:
    plan, journal = Plan.open(folder), Journal(folder)
    raws = kind == "raw"
    send = raw(url, topic, partitions, plan, replicas) if raws else library(url, topic, plan, folder, replicas)
    chunks = plan.chunks
    starts = np.flatnonzero(np.diff(chunks["batch"], prepend=-1)).tolist()
    first = max(0, journal.pushes - back)
    began_s, gone = time.monotonic(), starts[first] if first < len(starts) else len(chunks)
    base = gone
    for push in range(first, len(starts)):
        rows = chunks[starts[push] : starts[push + 1] if push + 1 < len(starts) else len(chunks)]
        fresh = rows[~rows["again"]]
        send(fresh, False)
        repeats = rows[rows["again"]]
        if len(repeats):
            send(repeats, True)
        gone += len(rows)
        journal.note(push + 1, len(repeats) + (len(fresh) if push < journal.pushes else 0))
        if (early_s := began_s + (gone - base) / rate - time.monotonic()) > 0:
            time.sleep(early_s)  # the pace of a live source; nothing to await
    journal.note(len(starts), 0, True)


if __name__ == "__main__":
    _, where, to, name, count, per_s, steps_back, how, confirmed = sys.argv
    main(Path(where), to, name, int(count), float(per_s), int(steps_back), how, int(confirmed))
