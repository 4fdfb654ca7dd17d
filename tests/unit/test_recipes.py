"""Every recipe learns: its tiny form, for seconds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")
pytest.importorskip("librosa", reason="librosa is not installed (pip install -e '.[training]')")

from pipeline.errors import ConfigError  # noqa: E402
from training import data, evaluate, export  # noqa: E402
from training.fit import fit  # noqa: E402
from training.recipes.digits import DigitsTask  # noqa: E402
from training.task import Task, find, names  # noqa: E402
from training.train import chosen  # noqa: E402

FALL = 0.9
"""Of the first pass's training loss, at most so much is left at the end."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def untrained(task, name, folder):
    """What learns within each stream alone has nothing to train, and is exported all the same."""
    with pytest.raises(ConfigError, match="nothing to train"):
        fit(task, bar=False)
    for bundle in task.bundles:
        made = export.write_untrained(task, name, bundle, folder / f"{bundle}.onnx", {"measured": 1.0})
        assert made.manifest.provenance.scores == {"measured": 1.0}


@pytest.mark.parametrize("name", names())
def test_the_tiny_form_learns_and_is_exported(name, tmp_path):
    try:
        task = chosen(name, {"device": "cpu"}, tiny=True)
        if task.bundles:
            untrained(task, name, tmp_path)
            return
        learner = fit(task, bar=False)
    except ConfigError as error:
        if "corpus" in str(error):
            pytest.skip(str(error))
        raise
    losses = [row["train_loss"] for row in learner.history]
    assert losses[-1] < FALL * losses[0], losses
    net = learner.average.cpu().eval()
    if type(task).manifest is Task.manifest:
        with pytest.raises(ConfigError, match="no bundle"):
            export.told_of(task, name)
        return
    told = export.told_of(task, name)
    bundle = export.write(net, told, tmp_path / f"{name}.onnx", task.max_bytes)
    assert bundle.manifest.labels == told.labels


def test_a_run_is_evaluated_on_whom_it_left_out(tmp_path, monkeypatch):
    """A run that is named plainly, for all folds, was once evaluated four times and told as four speakers."""
    monkeypatch.setattr(data, "RUNS", tmp_path)
    for whose, name in ((DigitsTask, "evaluate"), (DigitsTask, "summary"), (export, "told_of")):
        monkeypatch.setattr(whose, name, lambda *_, **__: {})  # minutes, of what is the same for every run
    monkeypatch.setattr(export, "write", lambda *_: SimpleNamespace(size_bytes=0))
    task = chosen("digits", {"device": "cpu", "passes": "1", "batches": "1"}, tiny=True)
    fit(task, tmp_path / "mine" / "weights.pt", bar=False)
    (tmp_path / "mine" / "metrics.json").write_text("{}")  # trained to its end
    monkeypatch.setattr(evaluate, "_training", lambda _: {})
    assert list(evaluate.results("digits", [], "mine", "", {})[1]) == [task.recipe.leave_out] == ["jackson"]
    assert list(evaluate.results("digits", ["jackson"], "mine", "", {})[1]) == ["jackson"]
    with pytest.raises(ConfigError, match="run mine left out jackson, not george"):
        evaluate.results("digits", ["george"], "mine", "", {})


@pytest.mark.parametrize("name", names())
def test_a_recipe_is_named_as_its_module_and_says_what_it_costs(name):
    module = find(name)
    assert module.RECIPE.name == name
    assert module.RECIPE.overridden(module.TINY) != module.RECIPE
    about = (module.__doc__ or "").lower()
    assert "cost" in about
    assert "expected" in about


@pytest.mark.parametrize("name", names())
def test_an_option_of_the_cell_reaches_the_cell(name):
    task = chosen(name, {"options.nonsense": "1"}, tiny=True)
    if task.bundles:
        return  # nothing is trained
    with pytest.raises(ConfigError) as refused:
        task.build()
    if "corpus" in str(refused.value):
        pytest.skip(str(refused.value))
    assert "nonsense" in str(refused.value)


def test_an_unknown_task_is_told():
    with pytest.raises(ConfigError, match=r"no task 'digitz'; there are: .*digits"):
        find("digitz")
