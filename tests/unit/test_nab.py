"""NAB's scoring against arithmetic: what each detection is worth, written out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from training import nab
from training.nab import Series

ROWS = 1000
WINDOW = (500, 599)
"""A hundred rows; the probation of a thousand is 150."""


def series(*windows: nab.Window, rows: int = ROWS, name: str = "group/one.csv") -> Series:
    return Series(name, np.zeros(rows, np.float32), windows)


def told(*rows: int, length: int = ROWS, score: float = 1.0) -> np.ndarray:
    scores = np.zeros(length)
    scores[list(rows)] = score
    return scores


def judged(scores: np.ndarray, one: Series | None = None, threshold: float | None = 0.5) -> nab.Outcome:
    one = one or series(WINDOW)
    return nab.score([one], {one.name: scores}, threshold)


def sigma(y: float) -> float:
    return 2 / (1 + math.exp(5 * y)) - 1


def test_a_perfect_detector_has_100_and_a_silent_one_0() -> None:
    assert judged(told(500)).score == pytest.approx(100)
    assert judged(told()) == nab.Outcome(0.0, 0.0, 0.5, 0, 1, 0)


@pytest.mark.parametrize(("row", "position"), [(500, -1.0), (549, -0.51), (550, -0.5), (599, -0.01)])
def test_a_detection_within_a_window_is_worth_its_earliness(row: int, position: float) -> None:
    """A window of n rows ends at -1/n; a hit's worth counts from the -1 that a miss costs: of 2 in all."""
    outcome = judged(told(row))
    assert outcome.gain == pytest.approx(1 + sigma(position) / sigma(-1))
    assert outcome.score == pytest.approx(50 * outcome.gain)
    assert (outcome.found, outcome.false) == (1, 0)


def test_only_the_earliest_detection_of_a_window_counts() -> None:
    assert judged(told(520, 521, 590)).score == judged(told(520)).score


@pytest.mark.parametrize(
    ("row", "cost"),
    [
        (499, 0.11),  # before any window
        (600, 0.11 * -sigma(1 / 99)),  # right behind: almost free
        (698, 0.11 * -sigma(1.0)),  # a window's length behind
        (896, 0.11),  # three lengths and more
        (999, 0.11),
    ],
)
def test_a_detection_outside_costs_by_its_distance_behind_the_last_window(row: int, cost: float) -> None:
    outcome = judged(told(row))
    assert outcome.gain == pytest.approx(-cost)
    assert outcome.score == pytest.approx(-50 * cost)
    assert (outcome.found, outcome.false) == (0, 1)


def test_between_windows_the_one_before_counts() -> None:
    one = series((300, 309), (500, 599))
    assert judged(told(320), one).gain == pytest.approx(0.11 * sigma(11 / 9))
    assert judged(told(700), one).gain == pytest.approx(0.11 * sigma(101 / 99))


@pytest.mark.parametrize(("rows", "first_seen"), [(1000, 150), (1001, 150), (4000, 600), (20_000, 750)])
def test_the_beginning_is_not_looked_at(rows: int, first_seen: int) -> None:
    one = series((rows - 100, rows - 1), rows=rows)
    assert judged(told(0, first_seen - 1, length=rows), one).false == 0
    assert judged(told(first_seen, length=rows), one).false == 1


def test_a_window_in_probation_can_be_found_by_nobody() -> None:
    outcome = judged(told(100), series((90, 140), WINDOW))
    assert (outcome.found, outcome.windows, outcome.score) == (0, 2, 0.0)


def test_a_window_of_one_row() -> None:
    assert judged(told(500), series((500, 500))).score == pytest.approx(100)
    assert judged(told(503), series((500, 500))).gain == pytest.approx(-0.11)


def test_a_series_without_windows_has_false_alarms_alone() -> None:
    outcome = judged(told(200, 300), series())
    assert (outcome.score, outcome.gain, outcome.windows) == (0.0, pytest.approx(-0.22), 0)


def test_one_threshold_for_all_series_is_the_best_one() -> None:
    """Found at 0.9; at 0.6 a second window is worth more than its false alarm, at 0.3 forty alarms are not worth a
    third one."""
    a, b, c = (series(WINDOW, name=f"group/{name}.csv") for name in "abc")
    scores = {a.name: told(500, score=0.9), b.name: told(500, 200, score=0.6), c.name: told(500, score=0.3)}
    scores[c.name][150:190] = 0.3
    outcome = nab.score([a, b, c], scores)
    assert (outcome.threshold, outcome.found, outcome.false) == (0.6, 2, 1)
    assert outcome.score == pytest.approx(100 * (4 - 0.11) / 6)
    assert nab.score([a, b, c], scores, 0.6) == outcome
    lower = nab.score([a, b, c], scores, 0.3)
    assert lower.gain == pytest.approx(6 - 41 * 0.11)


def test_rows_of_one_score_come_together() -> None:
    """The threshold cannot take the hit and leave the false alarms of the same score: then silence is best."""
    scores = np.full(ROWS, 0.4)
    assert judged(scores, threshold=None) == nab.Outcome(0.0, 0.0, math.inf, 0, 1, 0)


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"group/one.csv: scores \[999\], expected \[1000\]"):
        judged(np.zeros(999))
    with pytest.raises(ValueError, match="without NaN"):
        judged(np.full(ROWS, np.nan))


def test_files_are_read_as_nab_lays_them_out(tmp_path) -> None:
    folder = tmp_path / "data" / "real"
    folder.mkdir(parents=True)
    lines = [f"2014-01-01 00:{5 * n:02d}:00,{n / 2}" for n in range(6)]
    (folder / "a.csv").write_text("\n".join(["timestamp,value", *lines]) + "\n")
    window = ["2014-01-01 00:10:00.000000", "2014-01-01 00:20:00.000000"]
    (tmp_path / "combined_windows.json").write_text(json.dumps({"real/a.csv": [window], "real/absent.csv": []}))
    (one,) = nab.read(tmp_path)
    assert (one.name, one.group, one.windows) == ("real/a.csv", "real", ((2, 4),))
    np.testing.assert_array_equal(one.values, np.arange(6, dtype=np.float32) / 2)
