"""Noise suppression end to end: a noisy file is pushed, a clean one comes back, as a user does it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from pipeline.audio import read
from pipeline.bundle import load
from pipeline.offline import run
from tests.harness import DATA, WorkerProcess, make_producer, until
from tests.unit.test_cli import statebelt

from .conftest import SPEC, recordings


def test_noisy_in_clean_out(adopted: Callable[..., Path], url: str, tmp_path: Path) -> None:
    """Through Redis, the worker killed in the midst of it: the file that `tail --wav` writes is that of `run --wav`."""
    path = adopted("dtln")
    speech = recordings()["jfk"][: 6 * 16_000, 0].astype(np.float32)
    noise = read(DATA / "noise" / "running_tap.flac", SPEC)[: len(speech), 0].astype(np.float32)
    noise *= np.sqrt((speech**2).mean() / (noise**2).mean()) * 10 ** (-5 / 20)
    soundfile.write(tmp_path / "noisy.wav", ((speech + noise) / 2).astype(np.int16), 16_000)
    make_producer(url, load(path), "talks").close()

    worker = WorkerProcess(url, path, tmp_path, topic="talks", group="clean", lease_ms=1000).wait_for("ready")
    push = ("push", tmp_path / "noisy.wav", "--topic", "talks", "--stream", "talk", "--chunk-ms", 40, "--url", url)
    words = [str(word) for word in (*push, "--pace", "realtime")]
    pushing = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *words], stdout=subprocess.DEVNULL)
    tail = ("tail", "--topic", "talks", "--group", "clean", "--stream", "talk", "--from-beginning", "--url", url)
    until(lambda: "samples" in statebelt(*tail, "--seconds", 0.3)[0], "the first clean audio")
    worker.kill()
    with WorkerProcess(url, path, tmp_path, topic="talks", group="clean", lease_ms=1000):
        statebelt(*tail, "--wav", tmp_path / "clean.wav")
        assert pushing.wait(30) == 0
    statebelt("run", path, tmp_path / "noisy.wav", "--wav", tmp_path / "whole.wav")
    assert (tmp_path / "clean.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()

    clean, rate_hz = soundfile.read(tmp_path / "clean.wav", dtype="int16")
    noisy = read(tmp_path / "noisy.wav", SPEC)
    assert rate_hz == 16_000
    assert clean.shape == noisy[:, 0].shape
    made = run(load(path), noisy).samples
    assert made is not None
    assert np.abs(clean / 32767 - np.clip(made, -1, 1)).max() < 1e-4
    assert snr_db(speech / 2, clean.astype(np.float32)) > snr_db(speech / 2, noisy[:, 0].astype(np.float32)) + 4


def snr_db(wanted: np.ndarray, heard: np.ndarray) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((heard - wanted) ** 2).sum()))
