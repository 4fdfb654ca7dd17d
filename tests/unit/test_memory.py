"""The generated tasks: what they ask is what their docstrings say, and carried state is what makes the difference."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")

from typer.testing import CliRunner  # noqa: E402

from training import memory, memory_plots  # noqa: E402
from training.fit import fit  # noqa: E402
from training.recipes import adding, copying, moving_average  # noqa: E402
from training.train import chosen  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def unexplained(carry: str, lahead: int) -> float:
    settings = {"lahead": f"{lahead}", "carry": carry, "device": "cpu"}
    return fit(chosen("moving_average", settings, tiny=True), bar=False).history[-1]["unexplained"]


def test_with_segments_shorter_than_the_window_only_carried_state_converges():
    carried, begun = unexplained("yes", 1), unexplained("no", 1)
    assert carried < 0.05
    # Of two samples one is not seen: half the variance is out of reach (as sampled, within a tenth).
    assert begun > 0.45


def test_with_segments_as_long_as_the_window_both_converge():
    assert max(unexplained("yes", 2), unexplained("no", 2)) < 0.05


def test_the_moving_average_goes_on_over_the_seams_of_batches():
    task = chosen("moving_average", {"tsteps": "5", "lahead": "3", "streams": "4"})
    context, heard, wanted, fresh = None, [], [], []
    for index in range(6):
        batch, context = task.batch(index, context)
        heard.append(batch.x[:, :, 0])
        wanted.append(batch.target["mean"][:, :, 0])
        fresh.append(bool(batch.fresh.all()))
        assert batch.weight.tolist() == [[0, 0, 1]] * 4
    x = torch.cat(heard, dim=1).numpy()
    truth = np.stack([np.convolve(row, np.full(5, 0.2))[: x.shape[1]] for row in x])
    np.testing.assert_allclose(torch.cat(wanted, dim=1).numpy(), truth, atol=1e-6)
    assert fresh == [True] + [False] * 5


def test_a_net_that_does_not_carry_hears_the_same_but_begins_anew():
    both = [chosen("moving_average", {"carry": carry}) for carry in ("yes", "no")]
    batches = [task.batch(5, np.zeros((32, 2), np.float32))[0] for task in both]
    assert torch.equal(batches[0].x, batches[1].x)
    assert not batches[0].fresh.any()
    assert batches[1].fresh.all()


@pytest.mark.parametrize("carry", [True, False])
def test_the_moving_averages_answers_are_held_against_the_truth(carry):
    """A net that answers with the plain mean of what it saw: exact when it saw the window, off by the rest else."""

    class Mean(torch.nn.Linear):
        def initial_state(self, batch):
            return ()

        def forward(self, x):
            total = x.cumsum(dim=1)
            total[:, 3:] -= total[:, :-3].clone()
            return (total / 3,)

    task = chosen("moving_average", {"carry": "yes" if carry else "no", "lahead": "2", "tsteps": "3"})
    assert task.recipe.floor == (0.0 if carry else pytest.approx(1 / 3))
    with torch.no_grad():
        found = task.validate(Mean(1, 1))
    assert found["unexplained"] == pytest.approx(task.recipe.floor, abs=0.03)


def test_adding_asks_for_the_sum_of_two_numbers_one_in_each_half():
    x, total = adding.sequences(np.random.default_rng(1), 200, 50)
    marked = x[:, :, 1] > 0
    assert marked[:, :25].sum(dim=1).tolist() == [1] * 200
    assert marked[:, 25:].sum(dim=1).tolist() == [1] * 200
    np.testing.assert_allclose(total, x[:, :, 0][marked].reshape(200, 2).sum(dim=1), rtol=1e-6)
    assert float((total - 1).square().mean()) == pytest.approx(adding.BASELINE, rel=0.25)
    batch, _ = chosen("adding", {"frames": "50"}).batch(0, None)
    assert batch.weight.sum(dim=1).tolist() == [1.0] * 50
    assert batch.weight[:, -1].all()
    assert batch.fresh.all()


def test_copying_asks_for_the_symbols_again_after_the_sign():
    recipe = copying.RECIPE.overridden({"delay": "7", "length": "3"})
    x, due = copying.sequences(np.random.default_rng(1), 5, recipe)
    heard = x.argmax(dim=-1)
    assert x.shape == (5, 13, 10)
    assert torch.equal(due[:, 10:], heard[:, :3])
    assert (due[:, :10] == copying.SYMBOLS).all()
    assert heard[:, 3:].tolist() == [[8] * 6 + [9] + [8] * 3] * 5
    batch, _ = copying.task(recipe).batch(0, None)
    assert batch.weight[0].tolist() == pytest.approx([0.05] * 10 + [1.0] * 3)


def test_every_sequence_is_new_and_a_resumed_run_gets_the_same():
    task = chosen("adding", {"frames": "20"})
    first, again, other = (task.batch(n, None)[0].x for n in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_memories_are_spread_over_the_span(cell):
    net = chosen("adding", {"cell": cell, "frames": "100", "hidden": "400"}).build()
    layer = net.encoder.cells[0]
    assert float(layer.weight_ih_l0.detach().std()) == pytest.approx(1.0, rel=0.1)
    if cell == "rnn":
        return
    # f or z of about 1 - 1 / memory keeps for `memory` frames: from 2 to 100 of them, and a median of 50.
    kept = torch.sigmoid(layer.bias_ih_l0[400:800] + layer.bias_hh_l0[400:800]).detach()
    frames = 1 / (1 - kept)
    assert 2 <= float(frames.min()) < 5
    assert 40 < float(frames.median()) < 60
    assert 90 < float(frames.max()) <= 100


def test_a_study_is_written_gone_on_with_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.data, "RUNS", tmp_path)
    monkeypatch.setattr(memory, "variants", lambda _: [{"cell": "rnn"}, {"cell": "gru"}])
    path, app = tmp_path / "adding.json", memory.typer.Typer()
    app.command()(memory.main)
    options = ["adding", "--tiny", "--set", "passes=2", "--set", "device=cpu", "-o", str(path)]
    for _ in range(2):
        told = CliRunner().invoke(app, options)
        assert told.exit_code == 0, told.output
        found = json.loads(path.read_text())
        assert {"commit", "seed", "seconds", "command", "runs"} <= set(found)
        assert [run["variant"]["cell"] for run in found["runs"]] == ["rnn", "gru"]
        seconds = [run["seconds"] for run in found["runs"]]
        # What is known is not trained again: the second time nothing took any time.
        monkeypatch.setattr(memory, "fit", None)
    assert seconds == [run["seconds"] for run in found["runs"]]
    assert {picture.name for picture in (tmp_path / "adding").glob("*.png")} == {"curves.png", "reach.png"}


def test_the_reach_of_a_gradient_is_zero_where_nothing_is_heard():
    task = chosen("adding", {"frames": "9", "hidden": "8"})

    class Last(torch.nn.Module):
        """Says twice the number of the frame two before the last one."""

        def initial_state(self, batch):
            return ()

        def logits_of(self, x):
            return (2 * x[:, :, :1].roll(2, dims=1),)

        def features(self, x):
            return x

    assert memory.reach(task, Last()) == pytest.approx([0, 0, 0, 0, 0, 0, 2, 0, 0])


def test_pictures_of_the_moving_average_name_the_limit():
    found = []
    for carry in (True, False):
        recipe = {"lahead": 1, "tsteps": 3, "carry": carry}
        row = {"recipe": recipe, "history": [{"unexplained": 0.1}], "said": [0.0, 0.1], "wanted": [0.1, 0.2]}
        found.append(row)
    figures = memory_plots.figures("moving_average", found)
    (axis,) = figures["unexplained"].axes
    assert "the least it can have" in str([text.get_text() for text in axis.get_legend().get_texts()])
    assert pytest.approx(np.var(np.linspace(-1, 1, 100_001)), rel=1e-4) == moving_average.VARIANCE
