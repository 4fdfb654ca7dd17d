"""`statebelt verify` at the command line: what it prints, its lines for machines, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.verify import CHECKS
from tests.unit.test_cli import recording, statebelt
from tests.unit.verify_models import DELAYED, constant, model, quantised

EXACT = "Exact: what a stream yields is, byte for byte, what the model yields on the whole signal at once."


@pytest.fixture
def inexact(tmp_path: Path) -> Path:
    path = tmp_path / "q.onnx"
    path.write_bytes(quantised())
    return path


def test_exact() -> None:
    out, err = statebelt("verify", "digits", "--streams", 4, "--seconds", 1)
    assert all(name in out for name in CHECKS)
    assert EXACT in out
    assert "beyond" not in out + err


def test_not_exact(inexact: Path) -> None:
    out, _ = statebelt("verify", inexact, "--streams", 4, code=1)
    assert "beyond tolerance" in out
    assert "re-adopt with --tolerance" in out


def test_json_is_a_line_a_check(inexact: Path) -> None:
    out, err = statebelt("verify", inexact, "--json", "--streams", 4, code=1)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["check"] for line in lines] == list(CHECKS)
    chunking = lines[1]
    assert set(chunking) == {
        *("check", "verdict", "difference", "where", "events_same", "frames", "span", "note"),
    }
    assert set(chunking["where"]) == {"what", "stream", "frame", "time_s", "column"}
    assert chunking["difference"] > 0
    assert lines[0]["where"] is None
    assert "re-adopt with --tolerance" in err


def test_tolerance(tmp_path: Path, inexact: Path) -> None:
    out, _ = statebelt("verify", inexact, "--streams", 4, "--tolerance", 0.5)
    assert "within tolerance" in out
    assert "Not exact, but within the tolerance of 0.5" in out
    (tmp_path / "t.onnx").write_bytes(quantised(tolerance=0.5))
    out, _ = statebelt("verify", tmp_path / "t.onnx", "--streams", 4)
    assert "Not exact, but within the tolerance of 0.5" in out
    statebelt("verify", tmp_path / "t.onnx", "--streams", 4, "--tolerance", 0, code=1)


def test_a_recording(tmp_path: Path) -> None:
    out, _ = statebelt("verify", "digits", recording(tmp_path / "a.wav", 2.0), "--streams", 4)
    assert EXACT in out


def test_notes_are_warnings(tmp_path: Path) -> None:
    (tmp_path / "late.onnx").write_bytes(model(*DELAYED))
    _, err = statebelt("verify", tmp_path / "late.onnx", "--streams", 4)
    assert "warning: end: the last 1 frames" in err


def test_lost_frames_are_no_json_number(tmp_path: Path) -> None:
    lost = model(("Slice", ["x", "zero", "two", "one"], "scores", {}), init=(constant("two", [2], np.int64),))
    (tmp_path / "lost.onnx").write_bytes(lost)
    out, _ = statebelt("verify", tmp_path / "lost.onnx", "--json", "--streams", 4, code=1)
    assert json.loads(out.splitlines()[1])["difference"] is None
    out, _ = statebelt("verify", tmp_path / "lost.onnx", "--streams", 4, code=1)
    assert "other lengths" in out


def test_mistakes(tmp_path: Path, inexact: Path) -> None:
    _, err = statebelt("verify", inexact, recording(tmp_path / "a.wav", 0.5), code=2)
    assert "1 channel, expected 3" in err
    _, err = statebelt("verify", inexact, tmp_path / "none.wav", code=2)
    assert "no such file" in err
    statebelt("verify", inexact, "--streams", 1, code=2)
