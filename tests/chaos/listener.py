"""A consumer that listens all the while, and what it was handed: the other end of the promise.

Logs that are right in the end do not show what a reader missed on the way: after a failover, what the new primary has
below the place where it stood at the old one.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.consumer import Consumer, Result
from pipeline.errors import BrokerUnavailable
from tests.chaos.oracle import Oracle
from tests.chaos.plan import Sent
from tests.chaos.verifier import Entry, Verdict, judge

_AWAY_S = 0.05
_LAST_S = 10.0
"""For which what is left is still asked for at the end, from a server that may be gone for good."""


class Heard:
    """What was handed out, the first of each (stream, seq), in order.

    Attributes:
        again: handed out once more, with the same content. A failover that lost a result may do that, nothing else.
        changed: handed out once more with another content, in words.
    """

    def __init__(self) -> None:
        self._first: dict[str, dict[int, Entry]] = {}
        self.again = 0
        self.changed: list[str] = []

    def take(self, result: Result) -> None:
        seen = self._first.setdefault(result.stream, {})
        entry = _entry(result)
        known = seen.setdefault(result.seq, (result.id.encode(), entry))
        if known[1] is entry:
            return
        self.again += 1
        if known[1] != entry:
            self.changed.append(f"{result.stream} chunk {result.seq}: {known[1]}, then at {result.id}: {entry}")

    def verdict(self, sent: Sequence[Sent], oracle: Oracle, *, may_repeat: bool) -> Verdict:
        """may_repeat: whether a server may have lost what it had told."""
        found = judge({stream: list(seen.values()) for stream, seen in self._first.items()}, sent, oracle)
        for what in self.changed:
            found.found("different", what)
        if self.again and not may_repeat:
            found.found("doubled", f"{self.again} results were handed out again, though nothing was lost")
        return found


class Listener:
    """A consumer of one group, in a thread of its own, through the same proxy as everybody."""

    def __init__(self, url: str, topic: str, group: str) -> None:
        self.heard = Heard()
        self.failure: BaseException | None = None
        self._consumer = Consumer(topic, group, url=url, start="beginning")
        self._ending, self._due_s = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._listen, name=f"listener of {group}")
        self._thread.start()

    def _listen(self) -> None:
        try:
            while True:
                last = self._ending.is_set()  # asked before: what is there now is read
                try:
                    found = self._consumer.read(0.2)
                except BrokerUnavailable:
                    if last and time.monotonic() > self._due_s:
                        raise
                    self._ending.wait(_AWAY_S)
                    continue
                for result in found:
                    self.heard.take(result)
                if last and not found:
                    return
        except BaseException as error:  # told by the run, as one of its defects
            self.failure = error

    def close(self) -> None:
        """Read what is there still, and end."""
        self._due_s = time.monotonic() + _LAST_S
        self._ending.set()
        self._thread.join()
        self._consumer.close()


def _entry(result: Result) -> dict[bytes, bytes]:
    """A result as its log has it: the verifier knows no other form."""
    entry = {
        b"stream": result.stream.encode(),
        b"seq": b"%d" % result.seq,
        b"events": json.dumps([asdict(event) for event in result.events]).encode(),
    }
    if result.scores is not None:
        entry |= {b"scores": result.scores.tobytes(), b"shape": b"%d,%d" % result.scores.shape}
    if result.end:
        entry[b"end"] = b"1"
    if result.notes:
        entry[b"notes"] = json.dumps(result.notes).encode()
    return entry
