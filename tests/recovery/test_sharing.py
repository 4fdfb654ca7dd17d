"""Many workers: even shares, no pause for what does not move, one bundle a group, a crew that stays complete."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import psutil
import pytest
import redis

from pipeline import status
from pipeline.broker import members
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import Keys, workers_key
from pipeline.broker.members import Member
from pipeline.bundle import SHIPPED, from_bytes, load
from pipeline.consumer import Consumer
from pipeline.errors import ConfigError
from pipeline.frontend import PowerSpectrum
from pipeline.frontend.spectra import COMPILED
from pipeline.settings import load_settings
from pipeline.worker import Worker
from tests import zoo
from tests.harness import (
    WorkerProcess,
    assert_exact,
    collect,
    cut_up,
    lively,
    make_producer,
    random_cut,
    until,
    worker,
)

PARTITIONS = 8
SETTINGS = {"partitions": PARTITIONS, "lease_ms": 2000, "publish": "chunks"}


@pytest.fixture
def bundle_file(tmp_path: Path) -> Path:
    path = tmp_path / "audio.onnx"
    path.write_bytes(zoo.ZOO["audio"]())
    return path


def leases(client: redis.Redis) -> dict[int, tuple[int, str]]:
    """Of each partition that somebody holds: (epoch, owner)."""
    held = {p: client.get(Keys("audio", "digits", p).lease) for p in range(PARTITIONS)}
    return {p: (int(e), owner) for p, v in held.items() if v for e, owner in [v.decode().split(" ", 1)]}


def counts(client: redis.Redis) -> list[int]:
    """How many partitions each owner has, most first."""
    return sorted(Counter(owner for _, owner in leases(client).values()).values(), reverse=True)


def settles(client: redis.Redis, shares: list[int]) -> Callable[[], bool]:
    return lambda: counts(client) == shares


def test_shares_are_even_and_only_what_must_move_moves(url: str, redis_client: redis.Redis) -> None:
    """Workers join and leave in the midst of streams. A partition that keeps its epoch never paused."""
    bundle = zoo.bundle("audio")
    signals = lively(bundle, 24)
    batches = list(cut_up(bundle, signals, random_cut))
    parts = [batches[i * len(batches) // 4 : (i + 1) * len(batches) // 4] for i in range(4)]
    with (
        make_producer(url, bundle, partitions=PARTITIONS) as producer,
        Consumer("audio", "digits", url=url, start="beginning") as consumer,
    ):

        def push(part: int) -> None:
            for batch in parts[part]:
                producer.push_many(batch)

        with worker(url, bundle, **SETTINGS) as first:
            until(settles(redis_client, [8]), "one worker has all")
            before = leases(redis_client)
            push(0)
            with worker(url, bundle, **SETTINGS) as second:
                until(settles(redis_client, [4, 4]), "two have half each")
                after = leases(redis_client)
                kept = {p for p in after if after[p] == before[p]}
                assert len(kept) == 4
                assert {after[p][1] for p in kept} == {first.owner}
                push(1)
                with worker(url, bundle, **SETTINGS):
                    until(settles(redis_client, [3, 3, 2]), "three")
                    three = leases(redis_client)
                    assert sum(three[p] == after[p] for p in three) == 6
                    push(2)
                until(settles(redis_client, [4, 4]), "the third gave back")
                four = leases(redis_client)
                assert sum(four[p] == three[p] for p in four) == 6
            push(3)
            found = collect(consumer, list(signals))
            assert first.counts["dropped_partitions"] == second.counts["dropped_partitions"] == 0
    assert_exact(bundle, signals, found)


def test_more_workers_than_partitions_stand_by(url: str, redis_client: redis.Redis) -> None:
    bundle = zoo.bundle("audio")
    few = {**SETTINGS, "partitions": 1}
    with worker(url, bundle, **few) as first, worker(url, bundle, **few) as second:
        until(lambda: sum(len(w.owned) for w in (first, second)) == 1, "one of them owns it")
        until(lambda: redis_client.hlen(workers_key("audio", "digits")) == 2, "both are there")
        owner, idle = (first, second) if first.owned else (second, first)
        owner.stop()
        until(lambda: len(idle.owned) == 1, "the other takes it")


def test_two_bundles_under_one_group_are_refused(url: str) -> None:
    """They would discard each other's rows. A group of its own is fine, and so is a successor of a stopped worker."""
    model = onnx.load_from_string(zoo.ZOO["audio"]())
    model.producer_name = "somebody else"
    bundle, other = zoo.bundle("audio"), from_bytes(model.SerializeToString(), "other")
    settings = {"topic": "calls", "lease_ms": 400}
    with worker(url, bundle, **settings) as first:
        until(lambda: bool(first.owned), "the first to own something")
        with pytest.raises(ConfigError, match=r"group 'digits' on topic 'calls' is run by .* with another bundle"):
            Worker(load_settings(url=url, **settings), bundle=other).run()
        with worker(url, other, **settings, group="own") as beside:
            until(lambda: bool(beside.owned), "another group to own something")
    with worker(url, other, **settings) as successor:
        until(lambda: bool(successor.owned), "the successor to own something")


def test_a_worker_that_must_not_start_takes_nothing_from_who_works(url: str, redis_client: redis.Redis) -> None:
    """Told to run another bundle, again and again as by systemd: no partition changes hands, none pauses."""
    model = onnx.load_from_string(zoo.ZOO["audio"]())
    model.producer_name = "somebody else"
    other = from_bytes(model.SerializeToString(), "other")
    settings = {**SETTINGS, "lease_ms": 600}
    with worker(url, zoo.bundle("audio"), **settings) as first:
        until(settles(redis_client, [8]), "one worker has all")
        before = leases(redis_client)
        for _ in range(2):
            with pytest.raises(ConfigError, match="with another bundle"):
                Worker(load_settings(url=url, **settings), bundle=other).run()
        assert leases(redis_client) == before
        assert first.counts["dropped_partitions"] == 0


def test_one_that_wakes_to_find_another_bundle_at_work_goes(
    url: str, redis_client: redis.Redis, tmp_path: Path, bundle_file: Path
) -> None:
    """Frozen beyond its lease, its time in the register over: its group was free, and was given to another bundle."""
    model = onnx.load_from_string(zoo.ZOO["audio"]())
    model.producer_name = "somebody else"
    other = from_bytes(model.SerializeToString(), "other")
    settings = {**SETTINGS, "lease_ms": 600}
    with WorkerProcess(url, bundle_file, tmp_path, **settings) as frozen:
        until(settles(redis_client, [8]), "it has all")
        frozen.send(signal.SIGSTOP)
        with worker(url, other, **settings) as late:
            until(lambda: len(late.owned) == 8, "the other bundle to have all")
            before = leases(redis_client)
            frozen.send(signal.SIGCONT)
            assert frozen.process.wait(20) == 2
            assert "with another bundle" in frozen.log.read_text()
            assert leases(redis_client) == before


@pytest.mark.skipif(not COMPILED, reason="the spectra were not compiled where this was installed")
def test_workers_whose_last_bits_differ_tell_each_other(url: str, redis_client: redis.Redis, tmp_path: Path) -> None:
    bundle = load("digits")
    by_scipy = replace(bundle, frontend=PowerSpectrum(256, 160, compiled=False))
    with WorkerProcess(url, SHIPPED / "digits.onnx", tmp_path, **SETTINGS) as first:
        until(settles(redis_client, [8]), "it has all")
        with worker(url, bundle, **SETTINGS):
            first.wait_for("gave_back")
        assert "mixed_arithmetic" not in first.log.read_text()
        with worker(url, by_scipy, **SETTINGS) as unlike:
            first.wait_for("mixed_arithmetic")
            until(lambda: len(unlike.owned) == PARTITIONS // 2, "its share, by some more beats")
        told = [line for line in first.events() if line["event"] == "mixed_arithmetic"]
    assert [(t["worker"], t["theirs"], t["ours"]) for t in told] == [
        (unlike.owner, by_scipy.arithmetic(), bundle.arithmetic())
    ]


def test_a_look_at_who_lives_changes_nothing(redis_client: redis.Redis) -> None:
    key = workers_key("calls", "digits")
    members.join(redis_client, "calls", "digits", Member("a", 0, "one", "00"), 60_000)
    assert [m.owner for m in members.look(redis_client, "calls", "digits")] == ["a"]
    members.join(redis_client, "calls", "digits", Member("b", 0, "two", "00"), 1)
    until(lambda: [m.owner for m in members.look(redis_client, "calls", "digits")] == ["a"], "b's time to end")
    assert redis_client.hlen(key) == 2


def holders(client: redis.Redis) -> set[int]:
    """The processes that hold partitions."""
    return {int(owner.split("-")[-2]) for _, owner in leases(client).values()}


def children(process: WorkerProcess) -> list[psutil.Process]:
    return psutil.Process(process.process.pid).children()


def test_a_crew_shares_and_stays_complete(
    url: str, redis_client: redis.Redis, tmp_path: Path, bundle_file: Path
) -> None:
    """`--procs 2`: half each; a killed process is replaced; SIGTERM ends all, cleanly."""
    with WorkerProcess(url, bundle_file, tmp_path, "--procs", "2", **SETTINGS) as crew:
        until(settles(redis_client, [4, 4]), "half each")
        victim = children(crew)[0]
        victim.kill()
        crew.wait_for("worker_started_again")
        pids = [child.pid for child in children(crew)]
        assert len(pids) == 2
        assert victim.pid not in pids
        until(lambda: holders(redis_client) == {*pids} and counts(redis_client) == [4, 4], "half each again")
        crew.send(signal.SIGTERM)
        assert crew.process.wait(10) == 0
        assert leases(redis_client) == {}
        assert redis_client.hlen(workers_key("audio", "digits")) == 0
        assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_a_crew_does_not_outlive_its_killed_parent(
    url: str, redis_client: redis.Redis, tmp_path: Path, bundle_file: Path
) -> None:
    with WorkerProcess(url, bundle_file, tmp_path, "--procs", "2", **SETTINGS) as crew:
        until(settles(redis_client, [4, 4]), "half each")
        orphans = children(crew)
        crew.kill()
        _, alive = psutil.wait_procs(orphans, timeout=10)
        assert alive == []
        assert leases(redis_client) == {}  # told by the kernel, they drained


def test_a_crew_that_cannot_start_says_so_once(url: str, tmp_path: Path) -> None:
    with WorkerProcess(url, tmp_path / "absent.onnx", tmp_path, "--procs", "2", **SETTINGS) as crew:
        assert crew.process.wait(30) == 2
    assert "absent.onnx" in crew.log.read_text()


def check(url: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "worker", "--check", *flags],
        env={**os.environ, "STATEBELT_STATUS_DIR": str(folder / "status"), "STATEBELT_URL": url},
        capture_output=True,
        text=True,
        timeout=30,
    )


def wrong(url: str, folder: Path, live: bool = False) -> list[str]:
    """The same, asked in this process."""
    found = status.read(folder / "status", url, "audio", "digits")
    return status.faults(found, live) if found else ["none"]


def test_check_tells_probes(url: str, redis_client: redis.Redis, tmp_path: Path, bundle_file: Path) -> None:
    absent = check(url, tmp_path)
    assert (absent.returncode, absent.stderr) == (1, f"no worker of this group on {url} runs here\n")
    with WorkerProcess(url, bundle_file, tmp_path, **SETTINGS) as process:
        until(settles(redis_client, [8]), "the worker to own all")
        until(lambda: not wrong(url, tmp_path), "readiness")
        assert check(url, tmp_path).stdout == "ready: 1 worker owns 8 partitions\n"
        process.send(signal.SIGSTOP)
        until(lambda: bool(wrong(url, tmp_path, live=True)), "a frozen worker to be noticed")
        assert check(url, tmp_path, "--live").returncode == 1
        assert f"worker {process.process.pid}: silent for" in check(url, tmp_path).stderr
        process.send(signal.SIGCONT)
        until(lambda: not wrong(url, tmp_path), "readiness again")
        assert check(url, tmp_path, "--live").stdout == "alive: 1 worker owns 8 partitions\n"
        process.send(signal.SIGTERM)
        process.process.wait(10)
    assert check(url, tmp_path).returncode == 1
    assert list((tmp_path / "status").iterdir()) == []


def test_a_worker_stuck_in_a_silent_server_leaves_at_its_deadline(tmp_path: Path, bundle_file: Path) -> None:
    """The server hangs: no reply ever comes. SIGTERM still ends the worker within drain_ms and a little,
    though it comes again and again."""
    with (
        EmbeddedServer(tmp_path / "own", fsync="no") as server,
        WorkerProcess(server.url, bundle_file, tmp_path, **SETTINGS, drain_ms=500) as process,
    ):
        process.wait_for("ready")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            deadline_s = time.monotonic() + 6
            while True:
                process.send(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    assert process.process.wait(0.5) in (0, 1)
                    break
                assert time.monotonic() < deadline_s
        finally:
            os.kill(server.pid, signal.SIGCONT)
