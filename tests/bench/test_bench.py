"""The benchmark's own arithmetic and plumbing; no speed is asserted here."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from tests.bench import figures, pairs, show, summary
from tests.bench.cores import plan
from tests.bench.load import Load
from tests.bench.reading import Reading


def live(us: float) -> dict[str, Any]:
    grid = [us / 100] * len(figures.GRID)
    return {
        "streams": 90, "us": us, "server_us": 40.0, "producer_us": 30.0, "pushed_ms": grid, "due_ms": grid,
        "rss_mib": 80.0, "others": 0.02,
    }  # fmt: skip


def match(us: float, half: bool = False) -> dict[str, Any]:
    parts = {"half": live(us * 1.2)} if half else {}
    floods = [{**live(times * us), "ceiling_us": times * us / 5} for times in (1.0, 1.5, 0.9)]
    return {**parts, "floods": floods, "most": live(us), "max_streams": 90.0, "compared": 6, "furthest": 0.0}


@pytest.fixture
def run() -> dict[str, Any]:
    """Two turns, the second on a machine that was half as fast: ratios within a turn are the same."""
    packages = {"onnxruntime": "1", "numpy": "2"}
    return {
        "machine": {
            "cpu": "a cpu", "family": "f", "cores": 2, "isa": ["avx2"], "python": "3", "server": "s",
            "load_before": 0.0, "pinned": "p", "packages": packages, "when": "now",
        },
        "turns": 2,
        "alone": {"ceiling": [{"1": 190.0, "16": 60.0, "64": 70.0}, {"1": 380.0, "16": 120.0, "64": 140.0}]},
        "matches": {"statebelt": [match(300.0, True), match(600.0, True)], "loop": [match(1500.0), match(3000.0)]},
        "vad": {"ours": [match(100.0)], "loops": {"silero loop": [250.0]}},
        "curves": {
            "known": {"10": [live(200.0)], "10000": [live(220.0)]},
            "workers": {"1": [live(300.0), live(310.0)], "2": [live(320.0), live(310.0)]},
            "startup": [1.2, 1.4],
        },
        "skipped": {"faststream": "not installed"},
    }  # fmt: skip


def test_ratios_are_taken_within_a_turn(run: dict[str, Any]) -> None:
    found = summary.ratios(run)
    assert found == {"statebelt, of the ceiling": 0.2, "statebelt x loop": 5.0, "vad x silero loop": 2.5}


def test_the_ceiling_is_of_the_minute_of_each_flood(run: dict[str, Any]) -> None:
    for n, turn in enumerate(run["matches"]["statebelt"]):
        for flood, ratio in zip(turn["floods"], (1.3, 1.7, 1.5 + n), strict=True):
            flood["ceiling_us"] = flood["us"] / ratio
    row = next(row for row in summary.rows(run) if row.name == "statebelt")
    assert row.of_ceiling is not None
    assert row.of_ceiling.values == pytest.approx((1.3, 1.7, 1.5, 1.3, 1.7, 2.5))
    assert summary.ratios(run)["statebelt, of the ceiling"] == pytest.approx(1 / 1.6)


def test_two_workers_against_one(run: dict[str, Any]) -> None:
    assert summary.speed_up(run["curves"]["workers"]).values == (2 * 300 / 320, 2.0)


def test_the_ceiling_is_the_best_batch(run: dict[str, Any]) -> None:
    ceiling = summary.rows(run)[0]
    assert (ceiling.at, ceiling.us.values, ceiling.streams) == ("batch 16", (60.0, 120.0), 100_000 / 90)


def test_a_loss_is_more_than_a_part_and_counts_when_it_is_there_twice() -> None:
    committed = {"a": 2.0, "b": 1.0, "absent": 3.0}
    first, second = {"a": 1.69, "b": 0.86}, {"a": 1.71, "b": 0.1}
    assert [v.lost for v in figures.compare(committed, first)] == [True, False, False]
    assert not any(v.lost for v in figures.compare(committed, figures.better(first, second)))


def test_no_line_wraps_and_every_name_is_in_the_legend(run: dict[str, Any]) -> None:
    out = io.StringIO()
    console = Console(file=out, width=show.WIDTH)
    show.show(run, console)
    show.show_check(figures.compare({"a": 2.0, "c": 1.0}, {"a": 1.0}), console)
    text = out.getvalue()
    assert "…" not in text
    assert "1.97 x (1.88-2.00)" not in text
    for part in (
        "90 live",
        "same bytes (12)",
        "silero loop",
        "10,000",
        "faststream: not installed",
        "LOST",
        "a quiet machine",
    ):
        assert part in text, text
    assert set(show.DOES) <= set(show.LEGEND)


def test_three_pictures(run: dict[str, Any], tmp_path: Any) -> None:
    from tests.bench.plots import plot

    made = plot(run, tmp_path / "now")
    assert [path.name for path in made] == ["now-throughput.png", "now-latency.png", "now-scaling.png"]
    assert all(path.stat().st_size > 5000 for path in made)


@pytest.mark.parametrize(("streams", "known", "turns", "warm"), [(7, 7, 5, False), (3, 12, 9, True), (4, 8, 1, False)])
def test_a_schedule_gives_every_stream_its_signal(streams: int, known: int, turns: int, warm: bool) -> None:
    load = Load("plain", "s", streams, known, turns, ticks=2, warm=warm, rate_hz=100)
    recording = np.arange(1000, dtype=np.int16)
    pushed: dict[int, list[np.ndarray]] = {n: [load.chunk(recording, n, 0)] if warm else [] for n in range(known)}
    ended, before_s = set(), 0.0
    for due_s, who in load.moments():
        assert due_s >= before_s
        before_s = due_s
        for n, k, last in who:
            assert k == len(pushed[n])
            assert n not in ended
            pushed[n].append(load.chunk(recording, n, k))
            ended |= {n} if last else set()
    assert sum(map(len, pushed.values())) == load.chunks + known * warm
    for n, parts in pushed.items():
        if parts:
            assert np.array_equal(load.signal(recording, n), np.concatenate(parts))
            assert (n in ended) == (turns * streams >= known or n < turns * streams)


def test_cores_are_shared_when_there_are_few() -> None:
    assert {plan([n]).worker for n in (3,)} == {3}
    two = plan([4, 5])
    assert two.worker == 4
    assert {two.server, two.producer, two.reader, two.second} == {5}


def test_reading_notes_every_result_and_keeps_the_sample(tmp_path: Any) -> None:
    with EmbeddedServer(tmp_path) as server, connect(server.url) as client:
        for n in range(30):
            client.xadd(f"out{n % 2}", {"stream": f"s{n % 3}", "seq": n, **({"end": 1} if n > 26 else {})})
        reading = Reading(client, ["out0", "out1"], lambda f: (f[b"stream"], f[b"seq"], b"end" in f))
        reading.until(lambda: reading.ended == 3, {b"s1"}, 10, lambda: None)
        assert len(reading.at) == 30
        assert [fields[b"stream"] for _, fields in reading.kept[b"s1"]] == [b"s1"] * 10
        with pytest.raises(RuntimeError, match="only 30 results"):
            reading.until(lambda: False, set(), 0.1, lambda: None)


def test_pairs_tell_the_median_and_each_turn() -> None:
    turns = [{"p50": p, "p99": 10 * p, "worker": 100 + p, "server": 50.0} for p in (1.0, 9.0, 2.0)]
    table = pairs.table({(350, "before"): turns})
    assert [list(column.cells) for column in table.columns] == [
        ["350"], ["before"], ["2.0"], ["20.0"], ["102"], ["50"], ["1/10, 9/90, 2/20"]
    ]  # fmt: skip
