"""Several nets that answer together: the geometric mean of what each says by itself, streamed as whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")
pytest.importorskip("librosa", reason="librosa is not installed (pip install -e '.[training]')")

from pipeline.errors import ConfigError  # noqa: E402
from pipeline.offline import run  # noqa: E402
from training import data, export, runs  # noqa: E402
from training.graph import model_spec  # noqa: E402
from training.models import Together  # noqa: E402
from training.recipes.digits import RECIPE, DigitsTask  # noqa: E402

SMALL = dataclasses.replace(RECIPE, layers=1, hidden=24, synthetic=False)
OTHER = dataclasses.replace(
    SMALL, seed=8, cell="crnn", cepstra=0, options={"channels": (4, 8), "taps": (3, 3)}, average=0.9
)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Two runs, as after their first breath."""
    monkeypatch.setattr(data, "RUNS", tmp_path)
    torch.set_num_threads(1)
    for name, recipe in (("one", SMALL), ("other", OTHER)):
        (tmp_path / name).mkdir()
        task = DigitsTask(recipe)
        torch.manual_seed(recipe.seed)
        net = task.build()
        for module in net.modules():  # else both say next to nothing
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=1.0)
        best = {"weights": net.state_dict(), "passes": 1}
        torch.save({"recipe": recipe.to_dict(), "best": best}, tmp_path / name / "weights.pt")
    return tmp_path


def exported(names, path, settings=None):
    task, net = runs.read("digits", names, settings)
    return export.write(net, export.told_of(task, "digits", net=net), path, task.max_bytes)


def test_the_geometric_mean_of_what_each_says(kept):
    """Of all classes that are learnt: onnxruntime's answers net by net, not folded, put together by numpy."""
    both = exported("one+other", kept / "both.onnx")
    signal = export.trial_signal(both.manifest)
    unfolded, states = [], []
    for name in ("one", "other"):
        task, net = runs.read("digits", name)
        states.append({state.name for state in net.states})
        fold, net.fold, net.classes = net.fold, None, net.learnt
        told = task.manifest(export.provenance(task, "digits", {}))
        told = told.model_copy(update={"model": model_spec(net), "labels": tuple(map(str, range(net.learnt)))})
        told = told.model_copy(update={"head": told.head.model_copy(update={"background": "0"})})
        unfolded.append(run(export.write(net, told, kept / f"{name}-all.onnx"), signal).scores.astype(np.float64))
    assert np.abs(unfolded[0] - unfolded[1]).max() > 0.1
    together = np.sqrt(unfolded[0] * unfolded[1])
    together /= together.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run(both, signal).scores[: len(together)], together @ fold.numpy(), atol=1e-5)
    carried = [state.input for state in both.manifest.model.states]
    assert sorted(carried) == sorted(f"n{n}_{name}" for n, names in enumerate(states) for name in names)


def test_export_proves_it_as_any_net(kept):
    """`write` compares with torch and streams; other weights are refused."""
    _, net = runs.read("digits", "one+other")
    assert isinstance(net, Together)
    bundle = exported("one+other", kept / "both.onnx")
    assert export.prove(net, bundle) <= export.TOLERANCE
    with torch.no_grad():
        net.nets[1].readout.bias[3] += 5
    with pytest.raises(export.Refused, match="apart"):
        export.prove(net, bundle)


def test_the_head_may_be_set_and_nothing_else(kept):
    bundle = exported("one+other", kept / "both.onnx", {"head.threshold": "0.6", "head.smooth_frames": "14"})
    head = bundle.manifest.head
    assert (head.threshold, head.smooth_frames) == (0.6, 14)
    with pytest.raises(ConfigError, match="'hidden' decides a training"):
        runs.read("digits", "one+other", {"hidden": "3"})
    with pytest.raises(ConfigError, match="no weights at"):
        runs.read("digits", "one+nobody")


def test_nets_that_hear_other_frames_cannot_answer_together():
    nets = [DigitsTask(dataclasses.replace(SMALL, window_samples=size)).build() for size in (256, 512)]
    with pytest.raises(ConfigError, match="frames 257 and 129"):
        Together(nets)


@pytest.mark.parametrize(
    "wrong", [{"quiet": 1.5}, {"level_spread_db": -1.0}, {"noise_below_db": (5.0,)}, {"noise_below_db": (9.0, 5.0)}]
)
def test_noise_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(RECIPE, **wrong)


def test_noise_lies_where_the_recipe_says():
    """Streams of noise alone, of a level that is known."""
    from training.compose import Composer, Pools

    pools = Pools((), (), (), (), ())
    level_db = -20.0
    for below, quiet in (((10.0, 10.0), 0.0), ((30.0, 30.0), 0.0), ((10.0, 10.0), 1.0)):
        composer = Composer(pools, dataclasses.replace(RECIPE, noise_below_db=below, quiet=quiet))
        noise = composer._noise(np.random.default_rng(1), level_db)
        rms = float(np.sqrt(np.mean(np.square(noise))))
        assert rms == 0 if quiet else 20 * np.log10(rms) == pytest.approx(level_db - below[0], abs=0.1)
