"""Write weights as a bundle: one `.onnx` with its manifest inside, and prove that it says what torch says.

    python -m training.export                      runs/digits/weights.pt to pipeline/bundles/digits.onnx

Refused (exit 1, nothing written) when torch and ONNX differ by more than TOLERANCE in any probability, when ONNX
streamed differs from ONNX whole by one byte, or when the file would exceed MAX_BYTES.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer

from pipeline.bundle import Bundle, load
from pipeline.manifest import METADATA_KEY, InputSpec, Manifest, ModelSpec, PowerFrontend, Provenance, StateSpec
from pipeline.offline import run
from training import data, score
from training.graph import graph
from training.models.lstm import KeywordLSTM
from training.recipes.digits import LABELS, RECIPE, Head, Recipe

TOLERANCE = 1e-5
MAX_BYTES = 1_000_000
LICENCE = "Apache-2.0; learnt from FSDD (CC BY-SA 4.0), Arabic Speech Commands (CC BY 4.0), Speech Commands' noises"


class Refused(Exception):
    """The bundle does not say what the weights say."""


def read_weights(path: Path) -> tuple[KeywordLSTM, Recipe]:
    """The best averaged weights of a run, and the recipe that trained them."""
    if not path.is_file():
        raise Refused(f"no weights at {path}: run `python -m training.train` first")
    state = torch.load(path, weights_only=True)
    recipe = Recipe.from_dict(state["recipe"])
    model = KeywordLSTM(recipe)
    model.load_state_dict(state["best"]["weights"])
    return model.eval(), recipe


def manifest(recipe: Recipe, head: Head, provenance: Provenance) -> Manifest:
    """What the runtime is to know of a model of this recipe."""
    shape = (recipe.layers, 1, recipe.hidden)
    return Manifest(
        task="English digits, spoken: zero to nine",
        labels=LABELS,
        licence=LICENCE,
        provenance=provenance,
        input=InputSpec(sample_rate_hz=recipe.sample_rate_hz),
        frontend=PowerFrontend(window_samples=recipe.window_samples, hop_samples=recipe.hop_samples),
        model=ModelSpec(
            input="power",
            output="probabilities",
            features=recipe.window_samples // 2 + 1,
            classes=len(LABELS),
            states=tuple(StateSpec(input=n, output=f"{n}n", shape=shape, batch_axis=1) for n in ("h", "c")),
            tail_frames=head.tail_frames,
        ),
        head=score.head(head),
    )


def write(model: KeywordLSTM, told: Manifest, path: Path) -> Bundle:
    """Prove and write: the file appears only when all checks have passed. Raises Refused."""
    built = graph(model)
    entry = built.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, told.to_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        trial = Path(folder) / path.name
        onnx.save(built, trial)
        if trial.stat().st_size > MAX_BYTES:
            raise Refused(f"{trial.stat().st_size} bytes, at most {MAX_BYTES}: fewer hidden units, fewer layers")
        prove(model, load(trial))
        os.replace(trial, path)
    return load(path)


def trial_signal(seconds: float = 8.0, seed: int = 5) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Noise, tones and digital silence at many levels, `[N]`: no corpus is needed to prove an export."""
    rng = np.random.default_rng(seed)
    length = int(seconds * 8000)
    t = np.arange(length) / 8000
    pitch_hz = 120 + 60 * np.sin(2 * np.pi * 0.7 * t)
    buzz = np.sign(np.sin(2 * np.pi * np.cumsum(pitch_hz) / 8000))
    loud = np.interp(t, np.arange(0, seconds + 1), rng.choice([0.0, 0.001, 0.02, 0.3], int(seconds) + 1))
    x = loud * (0.5 * buzz + 0.3 * rng.standard_normal(length))
    x[length // 3 : length // 3 + 6000] = 0.0
    return np.asarray((np.clip(x, -1, 1) * 32767).astype(np.int16))


def prove(model: KeywordLSTM, bundle: Bundle, tolerance: float = TOLERANCE) -> float:
    """The largest difference between torch and ONNX in any probability; raises Refused beyond the tolerance."""
    samples = trial_signal()
    whole = run(bundle, samples)
    rng = np.random.default_rng(1)
    for chunk_samples in (37, 80, 160, 800, int(rng.integers(1, 4000))):
        streamed = run(bundle, samples, chunk_samples=chunk_samples)
        if streamed.scores.tobytes() != whole.scores.tobytes() or streamed.events != whole.events:
            raise Refused(f"ONNX in chunks of {chunk_samples} samples is not byte for byte ONNX on the whole signal")
    tail = np.zeros(bundle.manifest.model.tail_frames * bundle.manifest.hop_samples, np.int16)
    power, _ = bundle.frontend.step(
        (samples.astype(np.float32) / np.float32(32768))[None, :, None], bundle.frontend.initial_state(1)
    )
    frames = torch.from_numpy(np.concatenate([power, np.zeros((1, tail.size // 80, power.shape[2]), np.float32)], 1))
    with torch.no_grad():
        torch_says = model.eval()(frames, *model.initial_state(1))[0][0].numpy()
    apart = float(np.abs(torch_says[: len(whole.scores)] - whole.scores).max())
    if not apart <= tolerance:
        raise Refused(f"torch and ONNX are {apart:.2e} apart in a probability, at most {tolerance:.0e} is allowed")
    return apart


def commit() -> str:
    """The repository's commit, `unknown` outside of one."""
    command = ["git", "-C", str(data.ROOT), "rev-parse", "--short=12", "HEAD"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def main(
    weights: Annotated[Path, typer.Option(help="What `training.train` saved.")] = data.RUNS / "digits" / "weights.pt",
    output: Annotated[Path, typer.Option(help="The bundle to write.")] = data.ROOT / "pipeline/bundles/digits.onnx",
    metrics: Annotated[
        Path, typer.Option(help="What `training.evaluate` measured; goes into the provenance.")
    ] = data.RUNS / "evaluation.json",
) -> None:
    """Export weights as a bundle."""
    torch.set_num_threads(1)
    scores = json.loads(metrics.read_text())["scores"] if metrics.is_file() else {}
    try:
        model, _ = read_weights(weights)
        provenance = Provenance(
            recipe="training/recipes/digits.py",
            commit=commit(),
            data_sha256=data.sha256(),
            created=datetime.datetime.now(datetime.UTC).date().isoformat(),
            scores=scores,
            note="scores: leave-one-speaker-out folds of the same recipe; the shipped weights heard all four speakers",
        )
        bundle = write(model, manifest(RECIPE, RECIPE.head, provenance), output)
        print(f"{output}: {bundle.size_bytes} bytes; torch and ONNX at most {prove(model, bundle):.1e} apart")
    except Refused as refusal:
        raise SystemExit(f"refused: {refusal}") from None


if __name__ == "__main__":
    typer.run(main)
