"""Write weights as a bundle: one `.onnx` with its manifest inside, and prove that it says what torch says.

    python -m training.export                      runs/digits/weights.pt to pipeline/bundles/digits.onnx
    python -m training.export commands --run commands-crnn

Refused (exit 1, nothing written) when torch and ONNX differ by more than TOLERANCE in any score, when ONNX streamed
differs from ONNX whole by one byte, or when the file would exceed the task's `max_bytes`.
"""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from pipeline.bundle import Bundle, load
from pipeline.component import as_float
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest, PowerFrontend, Provenance
from pipeline.offline import run
from training import data, runs
from training.graph import graph, model_spec, with_manifest
from training.models import Net, Together
from training.recipe import parse_settings
from training.task import Task, find

TOLERANCE = 1e-5
"""Between torch and ONNX, of the largest score or of 1, whichever is more."""


class Refused(Exception):
    """The bundle does not say what the weights say."""


def write(net: Net | Together, told: Manifest, path: Path, max_bytes: int = 1_000_000) -> Bundle:
    """Prove and write: the file appears only when all checks have passed. Raises Refused.

    max_bytes: of a single net; several may be as large as so many files.
    """
    most = max_bytes * (len(net.nets) if isinstance(net, Together) else 1)
    return _write(with_manifest(graph(net), told), path, most, lambda bundle: prove(net, bundle))


def write_untrained(task: Task[Any], name: str, bundle: str, path: Path, scores: dict[str, float]) -> Bundle:
    """The same for one of the bundles of a task that trains none: there is no torch to agree with."""
    model, told = task.untrained(bundle, provenance(task, name, scores, task.note))
    return _write(with_manifest(model, told), path, task.max_bytes, prove_streaming)


def _write(made: bytes, path: Path, max_bytes: int, check: Callable[[Bundle], object]) -> Bundle:
    if len(made) > max_bytes:
        raise Refused(f"{len(made)} bytes, at most {max_bytes}: fewer hidden units, fewer layers")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        trial = Path(folder) / path.name
        trial.write_bytes(made)
        check(load(trial))
        os.replace(trial, path)
    return load(path)


def trial_signal(told: Manifest, seconds: float = 8.0, seed: int = 5) -> NDArray[Any]:
    """`[N, channels]` of the manifest's sample type: no corpus is needed to prove an export.

    For audio noise, tones and digital silence at many levels; for sensors 400 blocks of noise, steps and constants.
    """
    rng = np.random.default_rng(seed)
    if not isinstance(told.frontend, PowerFrontend):
        length, channels = 400 * told.hop_samples * told.model.block, told.input.channels
        steps = np.repeat(rng.normal(0, 1, (20, channels)), length // 20, axis=0)
        x = steps + rng.choice([0.0, 0.1, 1.0], (length, 1)) * rng.standard_normal((length, channels))
        return np.asarray(x * 1000 if told.input.sample_type == "int16" else x, told.input.sample_type)
    rate_hz = told.input.sample_rate_hz
    length = int(seconds * rate_hz)
    t = np.arange(length) / rate_hz
    pitch_hz = 120 + 60 * np.sin(2 * np.pi * 0.7 * t)
    buzz = np.sign(np.sin(2 * np.pi * np.cumsum(pitch_hz) / rate_hz))
    loud = np.interp(t, np.arange(0, seconds + 1), rng.choice([0.0, 0.001, 0.02, 0.3], int(seconds) + 1))
    x = np.clip(loud * (0.5 * buzz + 0.3 * rng.standard_normal(length)), -1, 1)
    x[length // 3 : length // 3 + int(0.75 * rate_hz)] = 0.0
    return np.asarray(x * 32767 if told.input.sample_type == "int16" else x, told.input.sample_type)[:, None]


def prove_streaming(bundle: Bundle) -> NDArray[np.float32]:
    """Scores `[T, C]` of the trial signal; raises Refused where chunks of it yield other bytes."""
    samples = trial_signal(bundle.manifest)
    scores = run(bundle, samples).scores
    rng = np.random.default_rng(1)
    unit = bundle.frontend.block
    for chunk_samples in (max(1, unit // 4), max(1, unit // 2), unit, 5 * unit, int(rng.integers(1, 25 * unit))):
        streamed = run(bundle, samples, chunk_samples=chunk_samples)
        if streamed.scores.tobytes() != scores.tobytes():
            raise Refused(f"ONNX in chunks of {chunk_samples} samples is not byte for byte ONNX on the whole signal")
    return scores


def prove(net: Net | Together, bundle: Bundle, tolerance: float = TOLERANCE) -> float:
    """The largest difference between torch and ONNX in any score; raises Refused beyond the tolerance."""
    samples, scores = trial_signal(bundle.manifest), prove_streaming(bundle)
    torch_says = by_torch(net, bundle, samples)[: len(scores)]
    if len(torch_says) != len(scores):
        raise Refused(f"torch has scores of {len(torch_says)} frames, ONNX of {len(scores)}")
    apart = float(np.abs(torch_says - scores).max())
    allowed = tolerance * max(1.0, float(np.abs(scores).max()))
    if not apart <= allowed:
        raise Refused(f"torch and ONNX are {apart:.2e} apart in a score, at most {allowed:.0e} is allowed")
    return apart


@torch.no_grad()
def by_torch(net: Net | Together, bundle: Bundle, samples: NDArray[Any]) -> NDArray[np.float32]:
    """`[T, C]` of a whole signal `[N, channels]`, the tail's frames included, as `bundle.forward` pads it."""
    spec, x = bundle.manifest.model, as_float(samples)[None]
    whole = bundle.frontend.block * spec.block
    x = np.pad(x, ((0, 0), (0, -x.shape[1] % whole), (0, 0)))
    frames, _ = bundle.frontend.step(x, bundle.frontend.initial_state(1))
    tail = -(-(spec.tail_frames + spec.latency) // spec.block) * spec.block
    frames = np.concatenate([frames, np.zeros((1, tail, frames.shape[2]), np.float32)], axis=1)
    scores = net.eval()(torch.from_numpy(frames), *net.initial_state(1))[0]
    return np.asarray(scores[0, net.latency :].numpy())


def told_of(
    task: Task[Any],
    name: str,
    scores: dict[str, float] | None = None,
    note: str = "",
    *,
    net: Net | Together | None = None,
) -> Manifest:
    """The manifest of a task's bundle, made now from this commit. net: where it is more than the task's own."""
    told = task.manifest(provenance(task, name, scores or {}, note))
    if not isinstance(net, Together):
        return told
    return told.model_copy(update={"model": model_spec(net, tail_frames=told.model.tail_frames)})


def provenance(task: Task[Any], name: str, scores: dict[str, float], note: str = "") -> Provenance:
    """Of a bundle that is made now from this commit."""
    return Provenance(
        recipe=f"training/recipes/{name}.py",
        commit=runs.commit(),
        data_sha256=task.data_sha256(),
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        scores=scores,
        note=note,
    )


def export_untrained(task: Task[Any], name: str, folder: Path, measured: Path) -> None:
    """All bundles of a task that trains none, each named as itself."""
    report = json.loads(measured.read_text())["folds"] if measured.is_file() else {}
    for bundle in task.bundles:
        scores = report.get(bundle, {}).get("scores", {})
        made = write_untrained(task, name, bundle, folder / f"{bundle}.onnx", scores)
        print(f"{folder / bundle}.onnx: {made.size_bytes} bytes; streamed as whole, byte for byte")


def main(
    task: Annotated[str, typer.Argument(help="A module of training/recipes.")] = "digits",
    run: Annotated[
        str, typer.Option(help="The run's folder under runs/; the task's name by default; one+other: both together.")
    ] = "",
    output: Annotated[Path | None, typer.Option(help="The bundle; pipeline/bundles/<task>.onnx by default.")] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="What `training.evaluate` measured; goes into the provenance.")
    ] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="Of the head: head.threshold=0.6.")] = None,
) -> None:
    """Export weights as a bundle."""
    torch.set_num_threads(1)
    folder = data.RUNS / (run or task)
    output = output or data.ROOT / "pipeline" / "bundles" / f"{task}.onnx"
    measured = metrics or folder / "evaluation.json"
    try:
        if metrics is not None and not metrics.is_file():
            raise ConfigError(f"--metrics: {metrics} is no file; give an evaluation.json, or leave it out")
        if (module := find(task)).task(module.RECIPE).bundles:
            kept = measured if measured.is_file() else runs.METRICS / f"{task}.json"  # of these very constants
            export_untrained(module.task(module.RECIPE), task, output.parent, kept)
            return
        made, net = runs.read(task, run or task, parse_settings(setting or []))
        scores = json.loads(measured.read_text())["scores"] if measured.is_file() else {}
        bundle = write(net, told_of(made, task, scores, made.note, net=net), output, made.max_bytes)
        print(f"{output}: {bundle.size_bytes} bytes; torch and ONNX at most {prove(net, bundle):.1e} apart")
    except (Refused, ConfigError) as refusal:
        raise SystemExit(f"refused: {refusal}") from None


if __name__ == "__main__":
    typer.run(main)
