"""What `make inspect` draws is what onnxruntime computed: gates from the file's weights, scores within 1e-5."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.image import imread
from typer.testing import CliRunner

from pipeline.bundle import SHIPPED, Bundle, from_bytes, load
from pipeline.errors import ConfigError
from pipeline.manifest import IdentityFrontend, InputSpec, Manifest, Provenance, ScoresHead
from pipeline.output import Event
from training import inspect
from training.graph import graph, model_spec, with_manifest
from training.models import Net, Standardise, encoder
from training.models.net import Activation
from training.observed import liveliest, observe, read_model
from training.observed_plots import View, draw
from training.unrolled import Unrolled

ROOT = Path(__file__).parents[2]
CELLS = ["rnn", "lstm", "lstm_coupled", "lstm_peephole", "gru", "bilstm", "cnn", "attention"]
CHANNELS = 8


def made(cell: str, seed: int = 3, activation: Activation = "softmax") -> tuple[Bundle, onnx.ModelProto]:
    """A bundle of a random net over eight sensor channels, two layers of twelve units, three classes."""
    torch.manual_seed(seed)
    net = Net(Standardise(CHANNELS), encoder(cell, CHANNELS, 2, 12), 3, activation=activation).eval()
    manifest = Manifest(
        task=f"random {cell}",
        labels=("a", "b", "c"),
        licence="Apache-2.0",
        provenance=Provenance(recipe="none", commit="none", data_sha256="none", created="today"),
        input=InputSpec(sample_rate_hz=50, channels=CHANNELS, sample_type="float32"),
        frontend=IdentityFrontend(),
        model=model_spec(net),
        head=ScoresHead(),
    )
    data = with_manifest(graph(net), manifest)
    return from_bytes(data, cell), onnx.load_from_string(data)


def sensors(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((frames, CHANNELS)).astype(np.float32)


@pytest.mark.parametrize("cell", CELLS)
def test_the_unrolled_graph_gives_the_scores_and_states_of_onnxruntime(cell: str) -> None:
    bundle, model = made(cell)
    frames = sensors(bundle.model.block * 7)[None]
    wanted, after = bundle.model.step(frames, bundle.model.initial_state(1))
    state = {name: torch.from_numpy(value) for name, value in bundle.model.initial_state(1).items()}
    feeds = {s.input: state[s.input].movedim(0, s.batch_axis) for s in bundle.manifest.model.states}
    rows = []
    blocks = bundle.manifest.model.blocks_a_call == 1
    for x in torch.from_numpy(frames).split(bundle.model.block if blocks else frames.shape[1], dim=1):
        ran = Unrolled(model).run({**feeds, "x": x})
        feeds = {s.input: ran.values[s.output] for s in bundle.manifest.model.states}
        rows.append(ran.values["y"])
    np.testing.assert_allclose(torch.cat(rows, dim=1).numpy(), wanted, atol=1e-5)
    for spec in bundle.manifest.model.states:
        np.testing.assert_allclose(feeds[spec.input].movedim(spec.batch_axis, 0).numpy(), after[spec.input], atol=1e-5)


def test_the_shipped_bundle_is_explained_by_its_own_weights() -> None:
    bundle = load("digits")
    x = (np.random.default_rng(1).standard_normal(16_000) * 3000).astype(np.int16)
    seen = observe(bundle, read_model(bundle, SHIPPED / "digits.onnx"), x, chunk_samples=777)
    whole = bundle.forward(x)
    assert seen.apart <= 1e-5
    assert seen.scores.tobytes() == whole.scores[: len(seen.scores)].tobytes()
    kind, parts = seen.layers[-1]
    assert (kind, len(seen.layers)) == ("LSTM", 2)
    # The textbook's equations hold between what is drawn.
    c = parts["forget"][1:] * parts["cell"][:-1] + parts["input"][1:] * parts["candidate"][1:]
    np.testing.assert_allclose(parts["cell"][1:], c, atol=1e-4)
    np.testing.assert_allclose(parts["hidden"], parts["output"] * np.tanh(parts["cell"]), atol=1e-5)
    # And h is onnxruntime's: the carried state of a run over the same frames.
    frames, _ = bundle.frontend.step(
        (x.astype(np.float32) / np.float32(32768))[None, :, None], bundle.frontend.initial_state(1)
    )
    _, state = bundle.model.step(frames, bundle.model.initial_state(1))
    np.testing.assert_allclose(parts["hidden"][-1], state["h"][0, -1], atol=1e-5)
    np.testing.assert_allclose(parts["cell"][-1], state["c"][0, -1], atol=1e-4)


def test_the_gradient_of_the_last_answer_is_that_of_finite_differences() -> None:
    bundle, model = made("rnn", activation="identity")
    x = sensors(12)
    seen = observe(bundle, model, x, chunk_samples=5)

    def last(signal: np.ndarray) -> np.ndarray:
        return bundle.model.step(signal[None], bundle.model.initial_state(1))[0][0, -1].astype(np.float64)

    best, step = int(last(x).argmax()), 1e-2
    slopes = np.zeros((12, CHANNELS))
    for t, n in np.ndindex(12, CHANNELS):
        up, down = x.copy(), x.copy()
        up[t, n] += step
        down[t, n] -= step
        slopes[t, n] = (last(up)[best] - last(down)[best]) / (2 * step)
    assert seen.reach is not None
    assert seen.answer == "abc"[best]
    np.testing.assert_allclose(seen.reach, np.linalg.norm(slopes, axis=1), rtol=0.02, atol=2e-4)
    # The simple RNN forgets: what it was fed first counts less than what it was fed last.
    assert seen.reach[0] < 0.2 * seen.reach[-1]


def test_units_are_chosen_by_the_variance_of_the_cell() -> None:
    cell = np.zeros((50, 4), np.float32)
    cell[:, 2] = np.linspace(-3, 3, 50)
    cell[:, 1] = np.linspace(-1, 1, 50)
    parts = {"cell": cell, "hidden": np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)}
    assert liveliest("LSTM", parts, 2) == [1, 2]


@pytest.mark.parametrize("options", [["--units", "3,17"], ["--layer", "0", "--chunk-ms", "250"]])
def test_a_recording_becomes_a_picture(tmp_path: Path, options: list[str]) -> None:
    noise = (np.random.default_rng(1).standard_normal(8_000) * 3000).astype(np.int16)
    soundfile.write(tmp_path / "noise.wav", noise, 8000)
    out = tmp_path / "made" / "out.png"
    told = CliRunner().invoke(_app(), [str(tmp_path / "noise.wav"), "-o", str(out), *options])
    assert told.exit_code == 0, told.output
    picture = imread(out)
    assert picture.shape[0] > 800
    assert picture[:, :, :3].std() > 0.1


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("rnn", ["hidden"]), ("lstm_peephole", ["forget", "cell", "hidden"]), ("bilstm", ["cell"]), ("cnn", [])],
)
def test_every_kind_of_net_has_its_pictures(cell: str, expected: list[str]) -> None:
    bundle, model = made(cell)
    seen = observe(bundle, model, sensors(bundle.model.block * 6), chunk_samples=9)
    assert seen.scores.tobytes() == bundle.forward(sensors(bundle.model.block * 6)).scores[: len(seen.scores)].tobytes()
    units = [1, 3] if expected else []
    view = View(seen, bundle.manifest, 9, 0, units, cell)
    told = " ".join(axis.get_ylabel() for axis in draw(view).axes)
    assert all(name in told for name in expected)
    assert "scores" in told
    assert ("gradient" in told) == bool(expected)


def test_time_is_told_in_a_unit_that_can_be_read_and_borders_have_an_end() -> None:
    bundle, model = made("rnn")
    seen = observe(bundle, model, sensors(3000), chunk_samples=1000)
    few, many = (View(seen, bundle.manifest, chunk, 0, [0], "") for chunk in (1000, 2))
    assert [view.scale[0] for view in (few, many)] == ["seconds", "seconds"]
    hourly = dataclasses.replace(seen, rate_hz=1 / 3600)
    assert View(hourly, bundle.manifest, 24, 0, [0], "").scale[0] == "days"

    def borders(view: View) -> int:
        """Vertical lines over the topmost picture."""
        kept = [drawn for drawn in draw(view).axes[0].collections if isinstance(drawn, LineCollection)]
        return sum(len(lines.get_segments()) for lines in kept)

    assert borders(few) == 2
    assert borders(many) == 0


def test_events_have_a_row_each_label_whose_bars_lie_where_they_were() -> None:
    bundle, model = made("rnn")
    heard = [Event("no", 0.5, 1.0, 0.9), Event("yes", 2.0, 2.5, 0.9), Event("no", 3.0, 3.0, 0.9)]
    seen = dataclasses.replace(observe(bundle, model, sensors(200), chunk_samples=50), events=heard)
    figure = draw(View(seen, bundle.manifest, 50, 0, [0], ""))
    (axis,) = (axis for axis in figure.axes if axis.get_ylabel() == "events")
    assert [text.get_text() for text in axis.get_yticklabels()] == ["no", "yes"]
    drawn = [one for one in axis.collections if isinstance(one, PolyCollection)]
    bars = [path.get_extents() for one in drawn for path in one.get_paths()]
    assert [(round(b.x0, 3), round(b.x1, 3), round(b.y0 + 0.4)) for b in bars] == [
        (0.5, 1.0, 0), (3.0, 3.004, 0), (2.0, 2.5, 1),
    ]  # fmt: skip


def test_columns_of_a_table_are_chosen(tmp_path: Path) -> None:
    _, model = made("gru")
    (tmp_path / "gru.onnx").write_bytes(model.SerializeToString())
    names = [*"abcdefgh", "label"]
    rows = [",".join(names)] + [",".join(["0.5"] * 9) for _ in range(20)]
    (tmp_path / "walk.csv").write_text("\n".join(rows))
    seen, _ = inspect.view(tmp_path / "walk.csv", str(tmp_path / "gru.onnx"), columns="a,b,c,d,e,f,g,h")
    assert seen.observed.signal.shape == (20, CHANNELS)


def test_other_gates_and_sensors_are_drawn_too(tmp_path: Path) -> None:
    bundle, model = made("gru")
    path = tmp_path / "gru.onnx"
    path.write_bytes(model.SerializeToString())
    np.savez(tmp_path / "walk.npz", x=sensors(60))
    seen, apart = inspect.view(tmp_path / "walk.npz", str(path), chunk_ms=200)
    assert apart <= 1e-5
    assert set(seen.observed.layers[0][1]) == {"update", "reset", "candidate", "hidden"}
    titles = [axis.get_ylabel() for axis in inspect.draw(seen).axes]
    assert any("reset gate" in title for title in titles)
    assert any("update gate" in title for title in titles)
    assert bundle.manifest.model.classes == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [({"units": "3,400"}, "0 to 127"), ({"layer": 7}, "2 recurrent layers"), ({"units": "a"}, "commas")],
)
def test_what_is_not_there_is_refused(tmp_path: Path, options: dict, told: str) -> None:
    soundfile.write(tmp_path / "noise.wav", np.zeros(4000, np.int16), 8000)
    with pytest.raises(ConfigError, match=told):
        inspect.view(tmp_path / "noise.wav", "digits", **options)


def test_a_quantised_graph_is_refused_by_the_name_of_its_operator() -> None:
    node = onnx.helper.make_node("DynamicQuantizeLSTM", ["x"], ["y"], domain="com.microsoft")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    strange = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [value]))
    with pytest.raises(ConfigError, match="DynamicQuantizeLSTM"):
        Unrolled(strange).run({"x": torch.zeros(1)})


def _app() -> object:
    import typer

    app = typer.Typer()
    app.command()(inspect.main)
    return app


def test_a_missing_file_is_told_before_anything_is_installed(tmp_path: Path) -> None:
    make = ["make", "-n", "--no-print-directory", "inspect", f"VENV={tmp_path / 'none'}"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "say which recording: make inspect FILE=me.wav" in done.stderr
    done = subprocess.run([*make, "FILE=me.wav"], cwd=ROOT, capture_output=True, text=True)
    assert 'training.inspect "me.wav"' in done.stdout
