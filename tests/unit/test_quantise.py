"""Bundles in int8: smaller, and within the tolerance that they state; and the speed that is told of bundles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")
pytest.importorskip("librosa", reason="librosa is not installed (pip install -e '.[training]')")

import typer  # noqa: E402

from pipeline.bundle import from_bytes, load  # noqa: E402
from pipeline.errors import ManifestError  # noqa: E402
from pipeline.verify import verify  # noqa: E402
from tests import nets, zoo  # noqa: E402
from training import quantise, speed  # noqa: E402
from training.graph import with_manifest  # noqa: E402


def operators(model: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_from_string(model).graph.node}


@pytest.mark.parametrize(
    ("cell", "share", "has", "keeps"),
    [
        ("rnn", 1.1, "MatMulInteger", "RNN"),  # of which there is no int8 form
        ("lstm", 0.4, "DynamicQuantizeLSTM", "MatMul"),  # the filterbank
        ("lstm_coupled", 0.4, "DynamicQuantizeLSTM", "MatMul"),
        ("lstm_peephole", 0.4, "DynamicQuantizeLSTM", "Sub"),
        ("gru", 1.1, "MatMulInteger", "GRU"),
        ("bilstm", 0.5, "DynamicQuantizeLSTM", "MatMul"),  # two of its operators share their weights
        ("cnn", 0.7, "MatMulInteger", "MatMul"),
        ("crnn", 1.1, "MatMulInteger", "GRU"),
        ("attention", 0.5, "MatMulInteger", "MatMul"),  # keys and queries
    ],
)
def test_int_8_says_nearly_the_same(cell: str, share: float, has: str, keeps: str) -> None:
    source = nets.bundled(cell, nets.net(cell, hidden=48, gain=1.0))
    before = from_bytes(source, "float32")
    made = with_manifest(quantise.quantised(onnx.load_from_string(source)), before.manifest)
    assert {has, keeps} <= operators(made)
    assert len(made) < share * len(source)
    samples = zoo.signal(before.manifest.input, 300 * before.frontend.block * before.model.block, seed=4)
    one, two = before.forward(samples).scores, from_bytes(made, "int8").forward(samples).scores
    assert 0 < np.abs(one - two).max() < 0.05 * np.ptp(one, axis=0).max()
    assert (one.argmax(axis=1) == two.argmax(axis=1)).mean() > 0.95  # of a random net, whose classes are close


@pytest.mark.parametrize("cell", ["lstm", "cnn"])
def test_an_int_8_bundle_states_how_far_company_and_cuts_change_it(cell: str) -> None:
    source = nets.bundled(cell, nets.net(cell, gain=1.0))
    before = from_bytes(source, "float32")
    _, after = quantise.variant(source, name="a net", streams=8)
    stated = after.manifest.model.tolerance
    assert 0 < stated < 0.1
    checks = list(verify(after, seed=9, streams=4))
    assert all(check.ok for check in checks)
    assert max(check.difference for check in checks) > stated / 20  # it is no idle promise
    assert after.manifest.provenance.note.startswith("int8 by dynamic quantisation of a net, sha256")
    assert after.manifest.provenance.scores == {}
    assert after.manifest.labels == before.manifest.labels


def test_a_stream_and_a_block_a_call_is_exact_again() -> None:
    made, after = quantise.variant(nets.bundled("lstm"), exact=True, streams=2)
    assert after.manifest.model.tolerance == 0  # as measured
    assert "DynamicQuantizeLSTM" in operators(made)
    x = np.random.default_rng(0).random((3, 20, after.manifest.model.features), np.float32)
    together, _ = after.model.step(x, after.model.initial_state(3))
    alone, _ = after.model.step(x[1:2], after.model.initial_state(1))
    assert together[1].tobytes() == alone[0].tobytes()


def test_what_is_no_bundle_is_refused() -> None:
    with pytest.raises(ManifestError):
        quantise.variant(b"no model")


def test_the_command_writes_and_tells(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(quantise.main)
    source, output = tmp_path / "net.onnx", tmp_path / "int8" / "net.onnx"
    source.write_bytes(nets.bundled("gru"))
    done = CliRunner().invoke(app, [str(source), "-o", str(output), "--seconds", "0.1", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["file_bytes"] == [source.stat().st_size, output.stat().st_size]
    assert told["tolerance"] == load(output).manifest.model.tolerance
    assert told["depends_on_batch"] is (told["tolerance"] > 0)
    assert min(told["live_streams_a_core"]) > 0
    plain = CliRunner().invoke(app, [str(source), "-o", str(output), "--seconds", "0.1"])
    assert "2 GRU operators stayed in float32" in plain.stdout
    refused = CliRunner().invoke(app, [str(tmp_path / "none.onnx"), "-o", str(output)])
    assert refused.exit_code != 0


@pytest.mark.parametrize("name", ["net_bilstm", "sensor", "digits"])
def test_speed_tells_what_the_manifest_says(name: str) -> None:
    bundle = zoo.bundle(name)
    told = speed.speed(bundle, streams=4, seconds=0.02)
    model, rate_hz = bundle.manifest.model, bundle.manifest.input.sample_rate_hz
    assert told["chunk_ms"] == pytest.approx(100)
    assert told["latency_ms"] == pytest.approx(1000 * model.latency * bundle.frontend.block / rate_hz)
    assert told["model_state_bytes"] == sum(array.nbytes for array in bundle.model.initial_state(1).values())
    assert told["row_bytes"] > told["model_state_bytes"]
    assert told["live_streams_a_core"] == pytest.approx(1e3 * told["chunk_ms"] / told["us_a_chunk"], rel=0.01, abs=1)


def test_a_chunk_is_at_least_a_block() -> None:
    """Four frames a block of a sensor at 10 frames a second."""
    told = speed.speed(zoo.bundle("forecast_head"), streams=2, seconds=0.01)
    assert told["chunk_ms"] == pytest.approx(3_600_000)


def test_the_speed_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(speed.main)
    path = tmp_path / "a.onnx"
    path.write_bytes(zoo.sensor())
    done = CliRunner().invoke(app, [str(path), str(path), "--seconds", "0.1", "--json"])
    assert [row["bundle"] for row in json.loads(done.stdout)] == ["a", "a"]
    plain = CliRunner().invoke(app, ["--cells", "--seconds", "0.1"]).stdout.splitlines()
    assert "streams a core" in plain[0]
    assert [line.split()[0] for line in plain[1:]] == list(nets.OPTIONS)
    assert CliRunner().invoke(app, []).exit_code != 0
