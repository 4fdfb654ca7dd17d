"""The architectures of `training.models`: torch and onnxruntime say what the textbooks say, step by step as at once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")
pytest.importorskip("librosa", reason="librosa is not installed (pip install -e '.[training]')")

from pipeline.bundle import from_bytes  # noqa: E402
from pipeline.errors import ConfigError  # noqa: E402
from tests import nets, textbook, zoo  # noqa: E402
from training.models import CELLS, Dropouts, LogMel, Net, Standardise, encoder  # noqa: E402
from training.models.encoder import Dropout  # noqa: E402

FRAMES = 60
FINITE = {"cnn": 1 + 2 * (1 + 2), "attention": 1 + 2 * 7}
"""Receptive fields of `nets.OPTIONS`, by arithmetic: 1 + sum of (K - 1) D_l, and 1 + L (W - 1)."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def frames(net: Net, batch: int, length: int = FRAMES, seed: int = 0) -> NDArray[np.float32]:
    """`[B, T, F]`, loud and quiet; power where the net takes power."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, length, net.front.frames)) * np.exp(rng.standard_normal((batch, length, 1)))
    return (x**2 if isinstance(net.front, LogMel) else x).astype(np.float32)


def other_shapes() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every cell as in the zoo, and forms of its own that the zoo has not."""
    shapes: dict[str, tuple[str, dict[str, Any]]] = {cell: (cell, {}) for cell in CELLS}
    shapes["one layer"] = ("lstm", {"layers": 1, "hidden": 7})
    shapes["short block"] = ("bilstm", {"block_frames": 2, "ahead_frames": 5})
    shapes["deep cnn"] = ("cnn", {"layers": 5, "taps": 2, "dilations": (1, 3)})
    shapes["crnn with a stride"] = ("crnn", {"channels": (4,), "taps": (3,), "bands": (5,), "stride": 3})
    shapes["crnn that keeps nothing"] = ("crnn", {"channels": (4, 5), "taps": (2, 1), "bands": (12, 2), "stride": 2})
    shapes["one head"] = ("attention", {"layers": 1, "heads": 1, "window_frames": 3})
    return shapes


SHAPES = other_shapes()


@pytest.fixture(params=SHAPES, scope="module")
def made(request: pytest.FixtureRequest) -> tuple[str, Net]:
    cell, options = SHAPES[request.param]
    return cell, nets.net(cell, **options)


def test_every_cell_is_in_the_zoo() -> None:
    assert list(CELLS) == list(nets.OPTIONS)
    assert {f"net_{cell}" for cell in CELLS} <= set(zoo.ZOO)


def test_torch_and_onnxruntime_say_what_the_textbook_says(made: tuple[str, Net]) -> None:
    """From a stream's beginning, to 1e-5, scores and (against torch) all that is carried."""
    cell, net = made
    x = frames(net, 2)
    with torch.no_grad():
        ours, *state = net(torch.from_numpy(x), *net.initial_state(2))
    model = from_bytes(nets.bundled(cell, net), cell).model
    served, carried = model.step(x, model.initial_state(2))
    for b in range(2):
        expected = textbook.scores(cell, net, x[b].astype(np.float64))
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(ours[b].numpy(), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(served[b], expected, rtol=1e-5, atol=1e-5)
    for spec, array in zip(net.states, state, strict=True):
        told = np.moveaxis(array.numpy(), spec.batch_axis, 0)
        np.testing.assert_allclose(carried[spec.name], told, rtol=1e-5, atol=2e-5)


def test_torch_by_steps_is_torch_by_the_whole(made: tuple[str, Net]) -> None:
    _, net = made
    x = torch.from_numpy(frames(net, 3))
    cuts = [0, *(net.block * n for n in (1, 2, 5, 11)), FRAMES]
    with torch.no_grad():
        whole, *after = net(x, *net.initial_state(3))
        state, parts = net.initial_state(3), []
        for start, stop in pairwise(cuts):
            y, *state = net(x[:, start:stop], *state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-6)
    for one, two in zip(state, after, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_attention_in_pieces_is_attention_at_once() -> None:
    """A long signal is looked at in pieces of 256 frames."""
    net = nets.net("attention")
    x = frames(net, 1, 600)
    with torch.no_grad():
        whole = net(torch.from_numpy(x), *net.initial_state(1))[0][0].numpy()
    np.testing.assert_allclose(whole, textbook.scores("attention", net, x[0].astype(np.float64)), rtol=1e-5, atol=1e-5)


# --- what an output depends on, by its gradient -----------------------------------------------------------------------


def influence(net: Net, row: int) -> NDArray[np.bool_]:
    """`[T]`: of which input frames a row of logits has a gradient."""
    x = torch.from_numpy(frames(net, 1)).requires_grad_()
    logits = net.logits(x, *net.initial_state(1))[0]
    (gradient,) = torch.autograd.grad(logits[0, row].square().sum(), x)
    found: NDArray[np.bool_] = (gradient[0] != 0).any(dim=1).numpy()
    return found


def test_no_row_depends_on_a_later_block(made: tuple[str, Net]) -> None:
    _, net = made
    for row in (0, 17, 30, FRAMES - 1):
        known = (row // net.block + 1) * net.block
        assert not influence(net, row)[known:].any()


@pytest.mark.parametrize("cell", CELLS)
def test_the_receptive_field_is_as_declared(cell: str) -> None:
    """Where memory ends, it ends exactly there; where it does not, the first frame still counts."""
    net = nets.net(cell)
    depends = influence(net, FRAMES - 1)
    assert net.encoder.receptive_frames == FINITE.get(cell)
    if cell in FINITE:
        assert depends[-FINITE[cell] :].all()
        assert not depends[: -FINITE[cell]].any()
    else:
        assert depends.all()


def test_a_row_of_the_bilstm_knows_its_right_context() -> None:
    """Row i stands for frame i - N_r: it depends on the whole block that it came with, N_r frames further on at least,
    and a frame at a block's end on exactly N_r."""
    net = nets.net("bilstm")
    assert (net.block, net.latency) == (4, 3)
    for row in range(8, 40):
        stands_for, last = row - net.latency, np.flatnonzero(influence(net, row))[-1]
        assert last == row // 4 * 4 + 3
        assert last - stands_for == net.latency + 3 - row % 4


# --- what onnxruntime makes of the operators --------------------------------------------------------------------------


def test_input_forget_looks_at_no_forget_gate() -> None:
    """f = 1 - i: NaN where the forget gate's weights stand changes nothing."""
    net = nets.net("lstm_coupled")
    x = frames(net, 2)
    sound = nets.bundled("lstm_coupled", net)
    model = from_bytes(sound, "sound").model
    graph = onnx.load_from_string(sound)
    hidden = net.encoder.outputs
    changed = 0
    for tensor in graph.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim == 3 and array.shape[:2] == (1, 4 * hidden):
            array[:, 2 * hidden : 3 * hidden] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            changed += 1
    assert changed == 4  # W and R of two layers
    other = from_bytes(graph.SerializeToString(), "no forget gate").model
    assert other.step(x, other.initial_state(2))[0].tobytes() == model.step(x, model.initial_state(2))[0].tobytes()


LARGE: dict[str, dict[str, Any]] = {
    **{cell: {"hidden": 64} for cell in CELLS},
    "bilstm": {"hidden": 48, "block_frames": 10, "ahead_frames": 5},
    "cnn": {"layers": 4, "hidden": 64, "taps": 5},
    "crnn": {"layers": 1, "hidden": 64, "channels": (16, 32), "taps": (5, 3), "bands": (4, 2)},
    "attention": {"hidden": 64, "window_frames": 32},
}


@pytest.mark.parametrize("cell", CELLS)
def test_exact_at_a_usual_size(cell: str) -> None:
    """Kernels are chosen by size: what holds for twelve units need not for sixty-four."""
    net = nets.net(cell, **LARGE[cell])
    model = from_bytes(nets.bundled(cell, net), cell).model
    x = frames(net, 64, 4 * net.block if net.block > 1 else 24)
    whole, after = model.step(x, model.initial_state(64))
    for batch, step in ((1, 1), (1, 3), (2, 1), (3, 2), (5, 7), (17, 3), (33, 1)):
        state, parts = model.initial_state(batch), []
        for start in range(0, x.shape[1], step * net.block):
            y, state = model.step(x[:batch, start : start + step * net.block], state)
            parts.append(y)
        assert np.concatenate(parts, axis=1).tobytes() == whole[:batch].tobytes(), (batch, step)
        assert {n: s.tobytes() for n, s in state.items()} == {n: s[:batch].tobytes() for n, s in after.items()}


# --- parts ------------------------------------------------------------------------------------------------------------


def test_normalisation_is_folded_into_the_weights() -> None:
    """After some training the running figures are used, and no frame looks at another."""
    for cell in ("cnn", "crnn"):
        net = nets.net(cell)
        net.train()
        x = torch.from_numpy(frames(net, 4))
        before = net(x, *net.initial_state(4))[0]
        assert (net(x[:1], *net.initial_state(1))[0] - before[:1]).abs().max() > 1e-3  # it looks at its batch
        net.eval()
        with torch.no_grad():
            alone, together = net(x[:1], *net.initial_state(1))[0], net(x, *net.initial_state(4))[0]
            expected = textbook.scores(cell, net, x[0].numpy().astype(np.float64))
        torch.testing.assert_close(alone, together[:1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(alone[0].numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_everything_that_is_learnt_has_a_gradient(cell: str) -> None:
    net = nets.net(cell).train()
    x = torch.from_numpy(frames(net, 3))
    net.logits(x, *net.initial_state(3))[0].logsumexp(dim=-1).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_dropout_locked_and_not() -> None:
    x = torch.ones(8, 50, 40)
    torch.manual_seed(0)
    free, locked = Dropout(0.25)(x), Dropout(0.25, locked=True)(x)
    assert free.unique().tolist() == locked.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert 0.2 < (free == 0).float().mean() < 0.3
    assert 0.15 < (locked == 0).float().mean() < 0.35
    assert (free != free[:, :1]).any()
    assert (locked == locked[:, :1]).all()
    assert (locked[0] != locked[1]).any()  # each stream its own
    assert Dropout(0.25).eval()(x) is x


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("where", ["dropout_input", "dropout", "dropout_output"])
def test_dropout_where_it_is_asked_for(cell: str, where: str) -> None:
    """Each of the three changes what training sees, and nothing else does; at inference there is none."""
    sizes = {"layers": 2, "hidden": 12, **nets.OPTIONS[cell]}
    made = encoder(cell, 6, **{where: 0.5}, **sizes)
    x, state = torch.randn(4, 20, 6), made.initial_state(4)
    one, two = made(x, *state)[0], made(x, *state)[0]
    assert (one != two).any()
    made.eval()
    assert (made(x, *state)[0] == made(x, *state)[0]).all()
    silent = encoder(cell, 6, **sizes)
    assert (silent(x, *state)[0] == silent(x, *state)[0]).all()


def test_what_there_is_not_is_told_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"no cell 'lstn'; there are rnn, lstm, .*attention"):
        encoder("lstn", 4, 1, 8)
    with pytest.raises(ConfigError, match=r"cnn has no option heads; it has taps, dilations"):
        encoder("cnn", 4, 1, 8, heads=2)
    with pytest.raises(ConfigError, match=r"rnn has no option heads; it has none"):
        encoder("rnn", 4, 1, 8, heads=2)
    with pytest.raises(ConfigError, match=r"hidden 10 must be a multiple of heads 4"):
        encoder("attention", 4, 1, 10)
    with pytest.raises(ConfigError, match=r"equally many"):
        encoder("crnn", 4, 1, 8, taps=(3,))
    with pytest.raises(ConfigError, match=r"multiple of 4"):
        LogMel(np.ones((9, 6), np.float32))


def test_a_front_learns_mean_and_scale_and_bends_its_bank() -> None:
    torch.manual_seed(1)
    front = LogMel(np.random.default_rng(0).random((9, 8), np.float32), cepstra=5)
    power = torch.rand(3, 100, 9)
    front.fit(front.features(power))
    made = front.standardised(front.features(power)).flatten(0, 1)
    torch.testing.assert_close(made.mean(dim=0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.std(dim=0), torch.minimum(torch.ones(5), made.std(dim=0)))
    own = torch.stack([front.mel, 2 * front.mel, 0 * front.mel])
    bent = front.features(power, own)
    torch.testing.assert_close(bent[0], front.features(power)[0])
    torch.testing.assert_close(bent[1], (2 * power[1] @ front.mel + 1e-6).log())
    assert (bent[2] == np.float32(np.log(np.float32(1e-6)))).all()


def test_activations_and_the_fold() -> None:
    """Sigmoid, identity, and auxiliary classes that add up to the last one: torch as onnxruntime."""
    fold = torch.eye(7, 5)
    fold[5:, 4] = 1.0
    for activation, extra in (("sigmoid", None), ("identity", None), ("softmax", fold)):
        net = Net(Standardise(6), CELLS["gru"](6, 1, 8, Dropouts()), 7 if extra is not None else 5,
                  activation=activation, fold=extra).eval()  # fmt: skip
        x = frames(net, 3)
        with torch.no_grad():
            logits, scores = (made(torch.from_numpy(x), *net.initial_state(3))[0] for made in (net.logits, net))
        model = from_bytes(nets.bundled("gru", net), "g").model
        np.testing.assert_allclose(model.step(x, model.initial_state(3))[0], scores.numpy(), rtol=1e-5, atol=1e-6)
        expected = {"sigmoid": logits.sigmoid(), "identity": logits}.get(activation)
        if expected is None:
            shares = logits.softmax(dim=-1)
            expected = torch.cat([shares[..., :4], shares[..., 4:].sum(dim=-1, keepdim=True)], dim=-1)
        torch.testing.assert_close(scores, expected)
