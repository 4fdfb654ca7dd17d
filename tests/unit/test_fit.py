"""The trainer on a task of arithmetic: what a stream was k frames ago. Only state can tell."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")
pytest.importorskip("tensorboard", reason="tensorboard is not installed (pip install -e '.[training]')")

from pipeline.errors import ConfigError  # noqa: E402
from training import data, train  # noqa: E402
from training import fit as fitting  # noqa: E402
from training.fit import Delay, Learner, fit  # noqa: E402
from training.losses import class_weights, cross_entropy, squared_error  # noqa: E402
from training.models import Net, Standardise  # noqa: E402
from training.precision import Precision  # noqa: E402
from training.recipe import Recipe  # noqa: E402
from training.task import Batch, Task, encoder_of, whole  # noqa: E402


@dataclass(frozen=True)
class Echo(Recipe):
    name: str = "echo"
    frames: int = 12
    back: int = 2


RECIPE = Echo(
    hidden=12, passes=3, batches=8, streams=8, segment_frames=6, learning_rate=2e-2, average=0.8, dropout=0.1, layers=2
)


class EchoTask(Task[Echo]):
    """x is noise; the target is x of `back` frames ago, of the batch before where the stream goes on."""

    def build(self) -> Net:
        r = self.recipe
        return Net(Standardise(1), encoder_of(r, 1), 1, activation="identity")

    def batch(self, index: int, context: Any) -> tuple[Batch, Any]:
        r = self.recipe
        made = torch.Generator().manual_seed(r.seed * 1000 + index)
        x = torch.randn(r.streams, r.frames, 1, generator=made)
        fresh = torch.rand(r.streams, generator=made) < 0.3
        if context is None:
            context, fresh = torch.zeros(r.streams, r.back, 1), torch.ones(r.streams, dtype=torch.bool)
        joined = torch.cat([context * ~fresh[:, None, None], x], dim=1)
        batch = Batch(x, {"y": joined[:, : r.frames]}, torch.ones(r.streams, r.frames), fresh)
        return batch, joined[:, r.frames :]

    def loss(self, logits: Any, target: Any, weight: Any) -> Any:
        return squared_error(logits, target["y"], weight)

    def validate(self, net: Net) -> dict[str, float]:
        batch, _ = self.batch(10**6, None)
        return {"loss": float(squared_error(whole(net, batch.x), batch.target["y"], batch.weight))}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_learns_what_only_state_can_tell():
    learner = fit(EchoTask(replace(RECIPE, passes=6, batches=30, layers=1, dropout=0.0)), bar=False)
    assert learner.history[-1]["loss"] < 0.1  # of 1: the variance


@pytest.mark.parametrize("until", [1, 2])
def test_interrupted_and_resumed_it_ends_at_the_same_bytes(tmp_path, until):
    unbroken = fit(EchoTask(RECIPE), tmp_path / "a" / "weights.pt", bar=False)
    fit(EchoTask(RECIPE), tmp_path / "b" / "weights.pt", bar=False, until=until)
    torch.rand(7)  # whatever else draws from the generator in between
    resumed = fit(EchoTask(RECIPE), tmp_path / "b" / "weights.pt", bar=False)
    assert equal(unbroken.net, resumed.net)
    assert equal(unbroken.average, resumed.average)
    for name, value in unbroken.best["weights"].items():
        assert torch.equal(value, resumed.best["weights"][name])
    timeless = [[{**row, "seconds": 0} for row in learner.history] for learner in (unbroken, resumed)]
    assert timeless[0] == timeless[1]


def test_a_run_begins_with_the_weights_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "RUNS", tmp_path)
    first = fit(EchoTask(RECIPE), tmp_path / "first" / "weights.pt", bar=False)
    second = Learner(EchoTask(replace(RECIPE, begin="first", seed=8)))
    for name, value in first.best["weights"].items():
        assert torch.equal(value, second.net.state_dict()[name])
    assert equal(second.net, second.average)
    assert second.steps == 0
    with pytest.raises(ConfigError, match="another model"):
        Learner(EchoTask(replace(RECIPE, begin="first", hidden=13)))
    with pytest.raises(ConfigError, match="no weights at"):
        Learner(EchoTask(replace(RECIPE, begin="none")))


def test_a_run_killed_while_it_saves_keeps_the_save_before(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    learner = fit(EchoTask(RECIPE), path, bar=False, until=1)
    before = path.read_bytes()

    def killed(_: Any, file: Any) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting.torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        learner.save(path)
    assert path.read_bytes() == before


def test_state_goes_on_detached_and_begins_anew_where_a_stream_is_fresh():
    task = EchoTask(replace(RECIPE, dropout=0.0))
    learner = Learner(task)
    h, c = torch.ones(2, 8, 12), torch.full((2, 8, 12), 2.0)
    fresh = torch.arange(8) < 3
    begun = learner._begun(fresh, (h, c))
    assert (begun[0][:, :3] == 0).all()
    assert (begun[1][:, :3] == 0).all()
    assert (begun[0][:, 3:] == 1).all()
    assert (begun[1][:, 3:] == 2).all()
    batch, _ = task.batch(0, None)
    _, after = learner._descend(0, batch, batch.target, batch.weight, begun)
    assert not any(state.requires_grad for state in after)


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_targets_wait_for_a_net_that_answers_late(frames):
    """Against the long way: all batches of a stream joined, moved back, and cut again. 7 is more than a batch."""
    delay, length = Delay(frames), 5
    label = torch.arange(1, 1 + 2 * 4 * length).reshape(2, -1)
    weight = torch.ones(2, 4 * length)
    fresh = torch.tensor([[True, True], [False, True], [False, False], [False, False]])
    got = []
    for n in range(4):
        cut = slice(n * length, (n + 1) * length)
        batch = Batch(torch.zeros(2, length, 1), {"label": label[:, cut]}, weight[:, cut], fresh[n])
        got.append(delay(batch))
    labels, weights = (torch.cat(parts, dim=1) for parts in ([g[0]["label"] for g in got], [g[1] for g in got]))
    for row, begins in ((0, [0]), (1, [0, length])):
        for t in range(4 * length):
            begun = max(b for b in begins if b <= t)
            if t - frames < begun:
                assert weights[row, t] == 0, (row, t)
            else:
                assert weights[row, t] == 1
                assert labels[row, t] == label[row, t - frames]


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    learner = Learner(EchoTask(replace(RECIPE, passes=10, batches=10, warm_up=0.1, learning_rate=1.0)))
    rates = [learner._learning_rate(n) for n in range(101)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.5 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 0.05))))
    assert rates[50] == pytest.approx(0.505)
    assert rates[100] == pytest.approx(0.01)
    assert rates[11:] == sorted(rates[11:], reverse=True)


def test_gradients_are_clipped_as_a_whole():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    norm = Precision("cpu").descend((weight * torch.tensor([3.0, 4.0, 0.0, 0.0])).sum(), optimiser, [weight], 1.0)
    assert norm == pytest.approx(5.0)
    assert torch.allclose(weight.detach(), torch.tensor([-0.6, -0.8, 0.0, 0.0]))
    optimiser.zero_grad()
    Precision("cpu").descend((weight * 10).sum(), optimiser, [weight], 0.0)
    assert weight.detach()[3] == -10


def test_early_stopping_keeps_the_best_pass(monkeypatch):
    judged = iter([5.0, 3.0, 4.0, 4.0, 2.0])
    monkeypatch.setattr(EchoTask, "validate", lambda *_: {"loss": next(judged)})
    learner = fit(EchoTask(replace(RECIPE, passes=5, patience_passes=2)), bar=False)
    assert len(learner.history) == 4
    assert (learner.best["loss"], learner.best["passes"]) == (3.0, 2)


def test_without_patience_the_last_weights_are_kept(monkeypatch):
    judged = iter([5.0, 3.0, 4.0])
    monkeypatch.setattr(EchoTask, "validate", lambda *_: {"loss": next(judged)})
    learner = fit(EchoTask(RECIPE), bar=False)
    assert learner.best["passes"] == 3
    assert all(torch.equal(v, learner.best["weights"][k]) for k, v in learner.average.state_dict().items())


def test_a_cpu_has_no_mixed_precision_and_a_missing_gpu_is_told():
    assert Precision("cpu", amp=True).dtype is None
    assert not Precision("cpu", amp=True).scaler.is_enabled()
    if not torch.cuda.is_available():
        assert Precision("auto").device.type == "cpu"
        with pytest.raises(ConfigError, match=r"device 'cuda'.*Use auto or cpu"):
            Precision("cuda")
    with pytest.raises(ConfigError, match="device 'toaster'"):
        Precision("toaster")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_it_learns_in_mixed_precision():
    learner = fit(EchoTask(replace(RECIPE, passes=12, batches=20, layers=1, dropout=0.0)), bar=False)
    assert learner.precision.dtype is not None
    assert learner.history[-1]["loss"] < 0.2


def test_a_loss_that_is_no_number_stops_the_run(monkeypatch):
    monkeypatch.setattr(EchoTask, "loss", lambda _, y, *__: y.sum() * float("nan"))
    with pytest.raises(ConfigError, match="lower learning_rate"):
        fit(EchoTask(RECIPE), bar=False)


def test_batches_that_are_no_whole_blocks_are_refused():
    recipe = replace(RECIPE, cell="bilstm", options={"block_frames": 4, "ahead_frames": 2}, segment_frames=6)
    with pytest.raises(ConfigError, match="12 frames in segments of 6, but bilstm takes blocks of 4"):
        fit(EchoTask(recipe), bar=False)


def test_a_net_that_answers_late_learns_all_the_same():
    recipe = replace(RECIPE, cell="bilstm", options={"block_frames": 4, "ahead_frames": 2}, segment_frames=12)
    learner = fit(EchoTask(replace(recipe, layers=1, passes=6, batches=30, dropout=0.0)), bar=False)
    assert learner.history[-1]["loss"] < 0.2  # of 1, so it is asked for the right frame


def test_a_field_that_a_task_does_not_read_is_refused():
    with pytest.raises(ConfigError, match="echo: the loss of this task has no class_balance"):
        Learner(EchoTask(replace(RECIPE, class_balance=0.5)))


def test_class_weights_make_rare_classes_count():
    counts = torch.tensor([10, 30, 0])
    assert class_weights(counts, 0.0).tolist() == [1, 1, 1]
    assert class_weights(counts, 1.0).tolist() == [2.0, pytest.approx(2 / 3), 1.0]
    logits, label = torch.randn(2, 5, 3), torch.randint(0, 2, (2, 5))
    weight = torch.rand(2, 5)
    ours = cross_entropy(logits, label, weight, 0.1, class_weights(counts, 0.5))
    theirs = torch.nn.functional.cross_entropy(logits.transpose(1, 2), label, reduction="none")
    spread = -logits.log_softmax(-1).mean(-1)
    total = weight * class_weights(counts, 0.5)[label]
    assert torch.allclose(ours, ((0.9 * theirs + 0.1 * spread) * total).sum() / total.sum())


def test_a_run_leaves_what_it_is_remembered_by(tmp_path):
    figures = train.train(EchoTask(RECIPE), "echo", tmp_path, bar=False)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["history"] == figures["history"]
    assert {"commit", "seed", "seconds", "command", "recipe", "created"} <= set(written)
    assert (tmp_path / "curves.png").stat().st_size > 1000
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = EventAccumulator(str(tmp_path / "tensorboard"))
    logs.Reload()
    assert {"train/loss", "train/learning_rate", "train/gradient_norm", "pass/loss"} <= set(logs.Tags()["scalars"])
    assert [event.value for event in logs.Scalars("pass/loss")] == pytest.approx(
        [r["loss"] for r in figures["history"]]
    )
