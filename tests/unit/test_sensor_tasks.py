"""The tasks over sensors: what is learnt from, what is judged, and how; against plain readings of both."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")

from pipeline.bundle import SHIPPED, load  # noqa: E402
from pipeline.consumer import Consumer  # noqa: E402
from pipeline.offline import run  # noqa: E402
from tests.harness import DATA, assert_exact, collect, until, worker  # noqa: E402
from tests.unit.test_cli import statebelt  # noqa: E402
from training import activity_data, forecast_data, sensing  # noqa: E402
from training.forecast_net import ForecastNet  # noqa: E402
from training.models import encoder  # noqa: E402
from training.recipes import activity, forecast  # noqa: E402

needs_hapt = pytest.mark.skipif(not (DATA / "activity").is_dir(), reason=f"no corpus at {DATA / 'activity'}")
needs_ett = pytest.mark.skipif(not (DATA / "ett").is_dir(), reason=f"no corpus at {DATA / 'ett'}")


def test_windows_lie_within_one_stretch_of_one_posture() -> None:
    label = np.repeat([2, -1, 2, 7, 0, 5], [128, 3, 320, 500, 127, 192])
    assert activity_data.windows(label) == [
        *((0, 2), (131, 2), (195, 2), (259, 2), (323, 2)),
        *((131 + 320 + 500 + 127, 5), (131 + 320 + 500 + 127 + 64, 5)),
    ]


@needs_hapt
def test_folds_share_nobody_and_leave_out_everybody_once() -> None:
    out = []
    for fold in activity_data.FOLDS:
        learnt, rest = activity_data.split(fold)
        assert not {one.subject for one in learnt} & {one.subject for one in rest}
        assert len(learnt) + len(rest) == 42
        out += sorted({one.subject for one in rest})
    assert sorted(out) == sorted({one.subject for one in activity_data.recordings()})
    assert len(activity_data.split("")[0]) == 42


@needs_hapt
def test_batches_go_on_where_the_one_before_ended_and_are_frames_that_serve() -> None:
    """Joined, what a row gets is what the frontend makes of its signal in one piece, with that signal's labels."""
    made = activity.task(activity.RECIPE.overridden({"streams": "4", "turn_degrees": "0", "recordings": "2"}))
    context, rows = None, []
    assert made.batch(0, None)[0].x.numpy().tobytes() == made.batch(0, None)[0].x.numpy().tobytes()
    for index in range(6):
        batch, context = made.batch(index, context)
        rows.append((batch.x[0].numpy(), bool(batch.fresh[0])))
    size = 6 * made.recipe.hop_samples
    for (before, _), (after, fresh) in pairwise(rows):
        joined = np.concatenate([before, after])
        overlap = joined[1:, :-size] == joined[:-1, size:]
        assert overlap[: len(before) - 1].all()
        assert overlap[len(before) - 1].all() == (not fresh)
    assert {fresh for _, fresh in rows} == {True, False}


def test_another_body_does_the_same() -> None:
    """Turning keeps lengths: only gain and noise change the acceleration's size; labels stay with their samples."""
    rng = np.random.default_rng(1)
    x = np.concatenate([np.tile([0.6, 0.0, 0.8], (400, 1)), np.zeros((400, 3))], axis=1).astype(np.float32)
    label = np.repeat([3, 4], 200)
    for _ in range(20):
        y, labels = activity_data.otherwise(x, label, rng, 12.0)
        size = np.linalg.norm(y[:, :3], axis=1)
        assert abs(size.mean() - 1) < 0.25
        assert size.std() < 0.03
        assert abs((labels == 3).mean() - 0.5) < 0.01
        assert 250 < len(y) < 600


def test_f1_by_counting() -> None:
    said, was = np.array([0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 1, 1, 2, 0, 2])
    counts = np.zeros((3, 3), np.int64)
    np.add.at(counts, (was, said), 1)
    by_hand = []
    for c in range(3):
        precision = np.mean(was[said == c] == c)
        recall = np.mean(said[was == c] == c)
        by_hand.append(2 * precision * recall / (precision + recall))
    assert activity.f1(counts).tolist() == pytest.approx(by_hand)


@needs_ett
def test_the_split_is_the_benchmarks() -> None:
    """8640, 2880 and 2880 hours; 2857 forecasts of 24 hours lie within the last; nothing of them is learnt from."""
    names, values = forecast_data.series()
    assert names == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert values.shape == (14400, 7)
    at = forecast_data.origins(forecast_data.JUDGED, 24)
    assert (len(at), at[0] + 1, at[-1] + 24) == (2857, 11520, 14399)
    learnt = forecast_data.standardised(values)[:8640]
    np.testing.assert_allclose(learnt.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(learnt.std(axis=0), 1, atol=1e-5)
    made = forecast.task(forecast.RECIPE)
    most, context = 0.0, None
    for index in range(40):
        _, context = made.batch(index, context)
        most = max(most, float(context[0].max()))
    assert 8000 < most <= 8640 - 24


@needs_ett
def test_targets_are_the_hours_that_follow() -> None:
    made = forecast.task(forecast.RECIPE.overridden({"streams": "3", "batch_frames": "30"}))
    z = forecast_data.standardised(forecast_data.series()[1])
    batch, (after, _, _) = made.batch(5, None)
    for row in range(3):
        for t in (0, 29):
            at = int(after[row]) - 30 + t
            assert batch.target["next"][row, t].reshape(24, 7).tolist() == z[at + 1 : at + 25].tolist()
            assert batch.x[row, t, -7:].tolist() == forecast_data.series()[1][at].tolist()


def test_the_net_by_its_formula() -> None:
    """In float64 and loops: unseen values are as the newest one, the line is shared, units are the series' own."""
    window, series, horizon = 5, 2, 3
    torch.manual_seed(0)
    net = ForecastNet(encoder("gru", series, 1, 4), window, series, horizon).eval()
    net.fit(torch.randn(50, series, dtype=torch.float64) * torch.tensor([2.0, 5.0]) + torch.tensor([1.0, -3.0]))
    for part in (net.line, net.readout):
        torch.nn.init.normal_(part.weight)
    x = np.random.default_rng(0).standard_normal((8, series)).astype(np.float32)
    x[4] = 0  # a gap: nobody measured
    padded = np.concatenate([np.zeros((window - 1, series), np.float32), x])
    frames = np.stack([padded[t : t + window].ravel() for t in range(len(x))])[None]
    with torch.no_grad():
        told = net(torch.from_numpy(frames), *net.initial_state(1))[0][0].numpy()
        mean, scale = net.unit_mean[:series].double().numpy(), net.unit_scale[:series].double().numpy()
        z = torch.from_numpy(((x - mean) / scale).astype(np.float32))[None]
        memory = net.readout(net.encoder(z, *net.initial_state(1))[0])[0].double().numpy()
    line, shift = net.line.weight.detach().double().numpy(), net.line.bias.detach().double().numpy()
    for t in range(len(x)):
        for s in range(series):
            past = [(padded[t + k, s] - mean[s]) / scale[s] for k in range(window)]
            seen = [bool(padded[t + k].any()) for k in range(window)]
            within = [value - past[-1] if there else 0.0 for value, there in zip(past, seen, strict=True)]
            for j in range(horizon):
                y = past[-1] + line[j] @ within + shift[j] + memory[t, j * series + s]
                assert told[t, j * series + s] == pytest.approx(y * scale[s] + mean[s], abs=1e-4)


@needs_hapt
@pytest.mark.skipif(not (SHIPPED / "activity.onnx").is_file(), reason="activity.onnx is not shipped yet")
def test_the_shipped_activity_bundle_through_a_topic_as_run_says(url: str) -> None:
    """A recording of the corpus, pushed from its file: every event of `run`, byte for byte."""
    bundle, path = load("activity"), sorted((DATA / "activity").glob("exp*.npz"))[0]
    with worker(url, bundle, topic="phones") as made:
        until(lambda: bool(made.owned), "its partitions")
        statebelt("push", path, "--topic", "phones", "--rate", 50, "--chunk-ms", 730, "--url", url)
        with Consumer("phones", "digits", url=url, start="beginning") as consumer:
            found = collect(consumer, [path.stem])
    samples = np.load(path)["imu"].astype(np.float32)
    assert_exact(bundle, {path.stem: samples}, found)
    events = run(bundle, samples).events
    assert (events[0].start_s, events[-1].end_s) == (0.0, len(samples) / 50)
    assert {"walking", "sitting", "standing", "laying"} <= {event.label for event in events}


@pytest.mark.parametrize("name", ["activity", "forecast"])
def test_whole_and_streamed_are_one(name: str) -> None:
    if not (SHIPPED / f"{name}.onnx").is_file():
        pytest.skip(f"{name}.onnx is not shipped yet")
    bundle = load(name)
    spec = bundle.manifest.input
    rng = np.random.default_rng(0)
    signals = [rng.standard_normal((n, spec.channels)).astype(np.float32) for n in (1, 7, 300, 501)]
    one, other = sensing.by_forward(bundle, signals), sensing.by_step(bundle, signals)
    assert sensing.same(one, other)
    other[2][1][5] += 1e-6
    assert not sensing.same(one, other)
