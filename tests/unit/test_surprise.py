"""The anomaly graph against its own description in plain float64, frame by frame; and what it says of real series."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")
pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install -e '.[training]')")

from pipeline import load  # noqa: E402
from pipeline.errors import ConfigError  # noqa: E402
from pipeline.model import open_runtime  # noqa: E402
from pipeline.offline import run  # noqa: E402
from pipeline.output import Event  # noqa: E402
from tests import zoo  # noqa: E402
from tests.harness import DATA  # noqa: E402
from training import anomaly_score, export, nab, skab  # noqa: E402
from training.recipes.anomaly import RECIPE, task  # noqa: E402
from training.surprise import LARGEST, OUTLYING, WIDTH, Surprise, graph  # noqa: E402

SPECS = {
    "one": Surprise(1, fast=(1, 3), slow=(10, 40), season=12, memory=60, start=5, quiet=6),
    "plain": Surprise(2, fast=(4,), slow=(25,), memory=30, start=3),
    "learns at first": Surprise(3, fast=(2, 5), slow=(200, 200), memory=200, start=10, learn=60),
    "widens": Surprise(2, fast=(2, 5), slow=(200, 200), memory=200, start=10, learn=60, widen=20),
}


def described(x: np.ndarray, spec: Surprise) -> np.ndarray:
    """`[T]` of `[T, C]`: the docstring of `training.surprise`, one number at a time."""
    rows, channels = x.shape
    told, surprises = [], []
    fast, slow = np.zeros((2, len(spec.fast), channels))
    reach = np.zeros((spec.features, 2, channels))  # running means of the 8th powers, up and down
    for t in range(rows):
        n, ratios = t + 1, []
        learns = not spec.learn or n <= spec.learn
        for k, (a, b) in enumerate(spec.pairs):
            fast[k] += (x[t] - fast[k]) / min(n, a)
            if learns:
                slow[k] += (x[t] - slow[k]) / min(n, b)
        features = [(fast[k] - slow[k], n, spec.start) for k in range(len(spec.fast))]
        if spec.season:
            away = x[t] - x[t - spec.season] if t >= spec.season else np.zeros(channels)
            features.append((away, n - spec.season, 2 * spec.season))
        for k, (e, age, start) in enumerate(features):
            for c in range(channels):
                up, down = WIDTH * reach[k, 0, c] ** (1 / 8), WIDTH * reach[k, 1, c] ** (1 / 8)
                out = abs(2 * e[c] - (up - down))
                ratio = min(out / (up + down), LARGEST) if up + down > 0 else LARGEST * (out > 0)
                ratios.append(ratio if n > start else 0.0)
                most = OUTLYING**8 * reach[k, :, c].max()
                for side, value in enumerate((max(e[c], 0.0), max(-e[c], 0.0))):
                    if learns and age >= 1:
                        reach[k, side, c] += (value**8 - reach[k, side, c]) / min(age, spec.memory)
                    elif spec.widen and not learns:
                        rate = 8 / (spec.widen * OUTLYING**8)
                        reach[k, side, c] += (min(value**8, most) - reach[k, side, c]) * rate
        r = sum(ratio**8 for ratio in ratios) ** (1 / 8)
        surprises.append(r / (1 + r))
        before = max(surprises[max(0, t - spec.quiet) : t], default=0.0)
        told.append(surprises[t] if not spec.quiet or surprises[t] > before else 0.0)
    return np.array(told)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_the_graph_does_what_is_described(name: str, offset: float) -> None:
    spec, rng = SPECS[name], np.random.default_rng(3)
    t = np.arange(160)[:, None]
    x = offset + np.sin(t / 2) + 0.3 * rng.standard_normal((160, spec.channels)) + 3.0 * (t > 110)
    x[90] += 8.0
    x = x.astype(np.float32)
    runtime = open_runtime(graph(spec).SerializeToString(), name)
    state = {s.name: np.zeros(s.shape, np.float32) for s in spec.states}
    y = runtime.run(["y"], {"x": x[None], **state})[0][0, :, 0]
    expected = described(x.astype(np.float64), spec)
    np.testing.assert_allclose(y, expected, atol=2e-4)
    assert y[90] > 0.7
    assert (y > 0).any()


def test_a_series_that_never_moved_is_surprised_as_much_as_can_be() -> None:
    flat = np.full((700, 1), 45.0, np.float32)
    flat[650] = 46.0
    scores = run(load("anomaly"), flat).scores[:, 0]
    assert not scores[:650].any()
    assert scores[650] > 0.99
    assert not scores[651:698].any()  # told once


def test_units_do_not_matter() -> None:
    """Scaled by a power of two: the same bytes."""
    x = np.random.default_rng(0).standard_normal((800, 1)).astype(np.float32)
    one, other = (run(load("anomaly"), x * np.float32(scale)).scores for scale in (1.0, 2.0**30))
    assert one.tobytes() == other.tobytes()


def test_what_lasts_becomes_normal() -> None:
    """A step far out of a learnt range: told at once, and ever less as the range widens, e-fold in `widen` frames."""
    spec = Surprise(1, fast=(1,), slow=(4096,), memory=4096, start=32, learn=100, widen=50)
    x = np.random.default_rng(1).standard_normal((1, 600, 1)).astype(np.float32)
    x[:, 200:] += 1000.0
    runtime = open_runtime(graph(spec).SerializeToString(), "lasting")
    y = runtime.run(["y"], {"x": x, **{s.name: np.zeros(s.shape, np.float32) for s in spec.states}})[0][0, :, 0]
    r = y / (1 - y)
    assert r[200] > 50
    # r + 1 is 2 (e + d) / (u + d): u grows by ln(1 + 255 * 8 / (50 * 256)) / 8 a frame, 0.92 in 50; d stays about 3
    assert np.log((r[320] + 1) / (r[370] + 1)) == pytest.approx(0.87, abs=0.03)
    assert (y[550:] < 0.56).all()


def test_lengths_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="each slow one longer"):
        Surprise(1, fast=(4, 16), slow=(64, 16))
    with pytest.raises(ConfigError, match="at least 1"):
        Surprise(1, fast=(0,), slow=(64,))


def test_the_shipped_bundles_are_those_of_the_recipe() -> None:
    for name, spec, alarm in (
        ("anomaly", RECIPE.one, RECIPE.one_alarm),
        ("anomaly8", RECIPE.eight, RECIPE.eight_alarm),
    ):
        manifest = load(name).manifest
        assert [(s.input, s.shape) for s in manifest.model.states] == [(s.name, s.shape) for s in spec.states]
        assert (manifest.head.threshold, manifest.head.rise) == (alarm.threshold, alarm.rise)


def corpus(name: str):
    if not (DATA / name).is_dir():
        pytest.skip(f"no corpus at {DATA / name} (set STATEBELT_DATA)")
    return DATA / name


def test_nab_of_some_groups() -> None:
    """Two of the five groups, 20 windows of 53; all of them are in training/metrics."""
    series = [one for one in nab.read(corpus("nab")) if one.group in ("realAdExchange", "artificialWithAnomaly")]
    scores = {one.name: run(load("anomaly"), one.values).scores[:, 0].astype(float) for one in series}
    assert nab.score(series, scores).score > 65


def test_skab_of_some_files() -> None:
    files, free = skab.read(corpus("skab"))
    some = [one for one in files if one.name in ("valve1/0.csv", "valve1/6.csv", "valve2/0.csv", "other/9.csv")]
    assert (len(files), len(some), free.shape[1]) == (34, 4, 8)
    found = {}
    for one in some:
        whole, same = anomaly_score.both(load("anomaly8"), one.values, 50)
        assert same
        found[one.name] = anomaly_score.marks(whole.events, len(one.values), 1.0)
        assert not found[one.name][: skab.NORMAL_ROWS].any()
    assert skab.f1({one.name: one.anomaly for one in some}, found).f1 > 0.75


def test_the_task_evaluates_whole_and_streamed(tmp_path, monkeypatch) -> None:
    """Some short files of both corpora, laid out as they are: figures, and no difference between the two ways."""
    few = {
        "nab": ["data/realTraffic/speed_7578.csv", "data/realAdExchange/exchange-3_cpc_results.csv"],
        "skab": ["data/valve2/3.csv", "data/other/1.csv"],
    }
    for name, files in few.items():
        for file in files:
            target = tmp_path / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(corpus(name) / file)
    (tmp_path / "nab/combined_windows.json").symlink_to(corpus("nab") / "combined_windows.json")
    quiet = (corpus("skab") / "data/anomaly-free/anomaly-free.csv").read_text().splitlines(keepends=True)
    (tmp_path / "skab/data/anomaly-free").mkdir()
    (tmp_path / "skab/data/anomaly-free/anomaly-free.csv").write_text("".join(quiet[:600]))
    monkeypatch.setenv("STATEBELT_DATA", str(tmp_path))
    judged = task(RECIPE)
    found = {name: judged.evaluate(load(name)) for name in judged.bundles}
    assert all(result["same"] for result in found.values())
    assert (found["anomaly"]["rows"], found["anomaly"]["all"]["windows"]) == (1127 + 1538, 4 + 3)
    assert (found["anomaly8"]["rows"], found["anomaly8"]["groups"]["valve2"]["files"]) == (995 + 745, 1)
    figures = judged.summary(found)
    assert figures["nab_standard"] >= figures["nab_own_threshold"]
    assert figures["nab_standard"] >= figures["nab_threshold_of_other_groups"]
    assert 0.5 < figures["skab_f1"] < 1
    with pytest.raises(ConfigError, match="6 channels; NAB's series have 1, SKAB's 8"):
        judged.evaluate(zoo.bundle("sensor"))


def test_alarms_are_known_when_they_are_told() -> None:
    """A start's score at its frame; an anomaly's frames from first to last."""
    events = [Event("anomaly_start", 600.0, 600.0, 0.6), Event("anomaly", 600.0, 1500.0, 0.9)]
    np.testing.assert_array_equal(anomaly_score.alarms(events, 6, 1 / 300), [0, 0, 0.6, 0, 0, 0])
    np.testing.assert_array_equal(anomaly_score.marks(events, 6, 1 / 300), [0, 0, 1, 1, 1, 0])


def test_exported_without_runs_it_keeps_what_was_measured_of_these_constants(tmp_path, monkeypatch):
    monkeypatch.setattr(export.data, "RUNS", tmp_path / "none")
    export.main("anomaly", output=tmp_path / "anomaly.onnx")
    told = {name: load(tmp_path / f"{name}.onnx").manifest.provenance.scores for name in ("anomaly", "anomaly8")}
    assert told == {name: load(name).manifest.provenance.scores for name in told}
    assert all(told.values())


def test_figures_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"refused: --metrics: .*figures.json is no file; give an evaluation.json"):
        export.main("anomaly", output=tmp_path / "anomaly.onnx", metrics=tmp_path / "figures.json")
    assert not any(tmp_path.iterdir())
