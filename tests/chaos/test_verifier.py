"""The verifier is only worth what it finds: logs with one thing wrong each, and it must name that thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline.broker.results import Result as Stored
from pipeline.bundle import Bundle, load
from pipeline.consumer import decode
from tests.chaos import bundles
from tests.chaos.listener import Heard
from tests.chaos.oracle import Oracle
from tests.chaos.plan import Sent, draw
from tests.chaos.verifier import Verdict, verify
from tests.harness import whole

Fields = dict[bytes, bytes]
Log = list[Fields]

GROUPS = ("words", "scores")


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bundles.write(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def oracles(paths: dict[str, Path]) -> dict[str, Oracle]:
    return {group: Oracle(path) for group, path in paths.items()}


@pytest.fixture(scope="session")
def sent() -> list[Sent]:
    found = [each for each in draw(3, 0, 200, 6).sent() if len(each.seqs) > 8]
    assert len(found) >= 4
    return found


def test_the_oracle_agrees_with_the_offline_run(
    paths: dict[str, Path], oracles: dict[str, Oracle], sent: list[Sent]
) -> None:
    """Two roads to the same bytes: `statebelt run`, and numpy with onnxruntime."""
    for group, oracle in oracles.items():
        bundle: Bundle = load(paths[group])
        for each in sent:
            events, scores, _ = whole(bundle, each.signal[:, None])
            found = oracle(each.signal)
            assert json.loads(events) == (found.events or [])
            if oracle.publishes_scores:
                assert scores == found.scores.tobytes()


def perfect(each: Sent, oracle: Oracle) -> Log:
    """The results of a stream, written from the oracle."""
    found = oracle(each.signal)
    due = [0, *oracle.due(each.stops)]
    log: Log = []
    for i, seq in enumerate(each.seqs):
        entry = {b"stream": each.stream.encode(), b"seq": b"%d" % seq, b"events": b"[]"}
        part = found.scores[due[i] : due[i + 1]]
        if oracle.publishes_scores and len(part):
            entry |= {b"scores": part.tobytes(), b"shape": b"%d,%d" % part.shape}
        if i == len(each.seqs) - 1:
            entry |= {b"end": b"1", b"events": json.dumps(found.events or []).encode()}
        log.append(entry)
    return log


def change(log: Log, i: int, **fields: bytes) -> None:
    log[i] = {**log[i], **{name.encode(): value for name, value in fields.items()}}


def swap(log: Log) -> None:
    log[3], log[4] = log[4], log[3]


def one_bit(log: Log) -> None:
    i = next(i for i, entry in enumerate(log) if b"scores" in entry)
    scores = bytearray(log[i][b"scores"])
    scores[5] ^= 1
    change(log, i, scores=bytes(scores))


def shifted(log: Log) -> None:
    """The same scores in all, one frame of them with the next chunk."""
    i = next(i for i in range(len(log) - 1) if b"shape" in log[i] and b"shape" in log[i + 1])
    both = [np.frombuffer(log[k][b"scores"], "<f4").reshape(-1, 11) for k in (i, i + 1)]
    joined = np.concatenate(both)
    for k, part in ((i, joined[: len(both[0]) - 1]), (i + 1, joined[len(both[0]) - 1 :])):
        change(log, k, scores=part.tobytes(), shape=b"%d,%d" % part.shape)


def other_event(log: Log) -> None:
    events = json.loads(log[-1][b"events"])
    events.append({"label": "four", "start_s": 0.1, "end_s": 0.2, "score": 0.9})
    change(log, -1, events=json.dumps(events).encode())


def other_score(log: Log) -> None:
    events = json.loads(log[-1][b"events"])
    events[0]["score"] = round(events[0]["score"] - 1e-6, 6)
    change(log, -1, events=json.dumps(events).encode())


def fewer_events(log: Log) -> None:
    change(log, -1, events=json.dumps(json.loads(log[-1][b"events"])[1:]).encode())


BROKEN: dict[str, tuple[str, tuple[str, ...], Callable[[Log], None]]] = {
    # what was done: (what must be found, in which groups, the deed)
    "a chunk without a result": ("lost", GROUPS, lambda log: log.pop(4) and None),
    "the last chunk without a result": ("lost", GROUPS, lambda log: log.pop() and None),
    "no result at all": ("lost", GROUPS, lambda log: log.clear()),
    "a result twice": ("doubled", GROUPS, lambda log: log.insert(4, log[4])),
    "a result again at the end": ("doubled", GROUPS, lambda log: log.append(log[2])),
    "two results swapped": ("disordered", GROUPS, swap),
    "one bit of the scores": ("different", ("scores",), one_bit),
    "a frame with another chunk": ("different", ("scores",), shifted),
    "one event more": ("different", GROUPS, other_event),
    "one event less": ("different", ("words",), fewer_events),
    "another score in the sixth digit": ("different", ("words",), other_score),
    "no end": ("different", GROUPS, lambda log: change(log, -1, end=b"0")),
    "an end in the middle": ("different", GROUPS, lambda log: change(log, 3, end=b"1")),
    "a note": ("unexplained", GROUPS, lambda log: change(log, 3, notes=b'[{"kind":"gap"}]')),
    "a number that nobody sent": ("strangers", GROUPS, lambda log: change(log, 3, seq=b"77")),
    "a stream that nobody sent": ("strangers", GROUPS, lambda log: change(log, 3, stream=b"who")),
}


def judged(client: redis.Redis, group: str, sent: list[Sent], logs: list[Log], oracle: Oracle) -> Verdict:
    """Write the logs as a worker would have, the streams taking turns, and have them read and judged."""
    depth = max(map(len, logs))
    with client.pipeline(transaction=False) as pipe:
        for i in range(depth):
            for n, log in enumerate(logs):
                if i < len(log):
                    pipe.xadd(f"sb:{{audio/{n % 2}}}:{group}:out", dict(log[i]))
        pipe.execute()
    return verify(client, "audio", group, 2, sent, oracle)


@pytest.mark.parametrize("group", GROUPS)
def test_a_perfect_log(redis_client: redis.Redis, oracles: dict[str, Oracle], sent: list[Sent], group: str) -> None:
    verdict = judged(redis_client, group, sent, [perfect(each, oracles[group]) for each in sent], oracles[group])
    assert verdict.silent, verdict
    assert (verdict.streams, verdict.chunks) == (len(sent), sum(len(each.seqs) for each in sent))
    assert verdict.results == verdict.chunks
    assert verdict.compared_bytes > 1000


@pytest.mark.parametrize(
    ("group", "deed"), [(group, deed) for deed, (_, groups, _) in BROKEN.items() for group in groups]
)
def test_it_finds(
    redis_client: redis.Redis, oracles: dict[str, Oracle], sent: list[Sent], group: str, deed: str
) -> None:
    fault, _, do = BROKEN[deed]
    logs = [perfect(each, oracles[group]) for each in sent]
    victim = next(i for i, each in enumerate(sent) if group == "scores" or oracles[group](each.signal).events)
    do(logs[victim])
    verdict = judged(redis_client, group, sent, logs, oracles[group])
    assert fault in verdict.faults, verdict
    assert verdict.examples
    assert sent[victim].stream in "".join(verdict.examples) or fault == "strangers"


def test_it_finds_results_under_other_ids_and_dead_letters(
    redis_client: redis.Redis, oracles: dict[str, Oracle], sent: list[Sent]
) -> None:
    """A result is joined to its chunk by its id; a chunk that was put aside is no silence."""
    log = perfect(sent[0], oracles["words"])
    for n, entry in enumerate(log):
        redis_client.xadd("sb:{audio/0}:in", {k: entry[k] for k in (b"stream", b"seq")}, id=f"{n + 1}-0")  # type: ignore[arg-type]
        redis_client.xadd("sb:{audio/0}:words:out", dict(entry), id=f"{n + 1}-{int(n == 5)}")  # type: ignore[arg-type]
    redis_client.xadd("sb:{audio/0}:words:dead", {"reason": "bad_seq"})
    verdict = verify(redis_client, "audio", "words", 1, sent[:1], oracles["words"])
    assert verdict.faults == {"misplaced": 1, "dead": 1}


def test_it_finds_faults_in_a_log_of_events_alone(
    redis_client: redis.Redis, oracles: dict[str, Oracle], sent: list[Sent]
) -> None:
    """With publish=events a chunk may be silent, but not one that completes frames, and not an end."""
    oracle = oracles["scores"]
    each = sent[0]
    spoken = [e for e in perfect(each, oracle) if b"scores" in e or b"end" in e]
    key = "sb:{audio/0}:scores:out"
    for entry in spoken:
        redis_client.xadd(key, dict(entry))  # type: ignore[arg-type]
    assert verify(redis_client, "audio", "scores", 1, [each], oracle, every_chunk=False).silent
    redis_client.xdel(key, redis_client.xrange(key)[4][0])
    assert verify(redis_client, "audio", "scores", 1, [each], oracle, every_chunk=False).faults == {"lost": 1}


HEARD = {name: deed for name, deed in BROKEN.items() if name not in ("no end", "a stream that nobody sent")}
"""What a consumer can be handed: it knows no other sign of an end than that there is one."""


def heard(logs: list[Log], again: int = 0) -> Heard:
    """As a consumer is handed these logs, the last `again` results of each once more."""
    found = Heard()
    for log in logs:
        for n, fields in enumerate([*log, *(log[-again:] if again else [])]):
            found.take(decode(Stored(0, b"%d-0" % (n + 1), fields)))
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_a_consumer_that_was_handed_everything(oracles: dict[str, Oracle], sent: list[Sent], group: str) -> None:
    logs = [perfect(each, oracles[group]) for each in sent]
    verdict = heard(logs).verdict(sent, oracles[group], may_repeat=False)
    assert verdict.silent, verdict
    assert verdict.results == verdict.chunks == sum(map(len, logs))
    after_a_failover = heard(logs, again=3)
    assert after_a_failover.verdict(sent, oracles[group], may_repeat=True).silent
    assert after_a_failover.verdict(sent, oracles[group], may_repeat=False).faults == {"doubled": 1}
    assert after_a_failover.again == 3 * len(sent)


@pytest.mark.parametrize(
    ("group", "deed"), [(group, deed) for deed, (_, groups, _) in HEARD.items() for group in groups]
)
def test_what_a_consumer_was_handed_wrong_is_found(
    oracles: dict[str, Oracle], sent: list[Sent], group: str, deed: str
) -> None:
    fault, _, do = HEARD[deed]
    logs = [perfect(each, oracles[group]) for each in sent]
    do(logs[next(i for i, each in enumerate(sent) if group == "scores" or oracles[group](each.signal).events)])
    assert fault in heard(logs).verdict(sent, oracles[group], may_repeat=False).faults


def test_a_result_that_is_another_one_the_second_time(oracles: dict[str, Oracle], sent: list[Sent]) -> None:
    """Handed out again it may be, after a failover; never changed."""
    log = perfect(sent[0], oracles["words"])
    log.append({**log[2], b"events": b'[{"label": "four", "start_s": 0.1, "end_s": 0.2, "score": 0.9}]'})
    found = heard([log]).verdict(sent[:1], oracles["words"], may_repeat=True)
    assert found.faults == {"different": 1}
    assert f"{sent[0].stream} chunk {sent[0].seqs[2]}" in found.examples[0]
