"""What the report does not take anybody's word for: measured while the page is built, on the shipped files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline import recordings
from pipeline.bundle import SHIPPED, Bundle, from_bytes, load
from pipeline.manifest import Manifest, PowerFrontend, Provenance
from pipeline.offline import run
from training import data, train
from training.export import trial_signal
from training.graph import graph, with_manifest
from training.speed import speed

DEMO = data.ROOT / "pipeline" / "recordings" / "digits.flac"


@dataclass(frozen=True)
class Equality:
    """A bundle streamed in several chunk sizes against the same signal whole.

    numbers: scores that were compared. scores_apart: how many of them differ in a bit; events_apart: events that are
    not in both. exact: the manifest promises no difference at all (int8 does not).
    """

    bundle: str
    seconds: float
    chunks: tuple[int, ...]
    numbers: int
    scores_apart: int
    events: int
    events_apart: int
    largest: float
    exact: bool


def shipped() -> list[Path]:
    """Every bundle in the repository."""
    return sorted(SHIPPED.glob("*.onnx"))


def heard(told: Manifest) -> NDArray[Any]:
    """The demo's twelve digits for what takes sound, so that there are events; else noise, steps and constants."""
    if isinstance(told.frontend, PowerFrontend):
        return np.asarray(recordings.read(DEMO, told.input))
    return trial_signal(told)


def equality(bundle: Bundle) -> Equality:
    """Whole, and in chunks of a quarter block, one, five, and a prime number of samples."""
    samples = heard(bundle.manifest)
    unit = bundle.frontend.block * bundle.model.block
    chunks = tuple(sorted({max(1, unit // 4), unit, 5 * unit, 997}))
    whole, at_once = bundle.forward(samples), run(bundle, samples)
    numbers = apart = events_apart = 0
    largest = 0.0
    for chunk in chunks:
        got = run(bundle, samples, chunk_samples=chunk)
        wanted = whole.scores[: len(got.scores)]
        numbers += got.scores.size
        apart += int((got.scores.view(np.uint32) != np.ascontiguousarray(wanted).view(np.uint32)).sum())
        apart += abs(len(whole.scores) - len(got.scores)) * wanted.shape[1]
        largest = max(largest, float(np.abs(got.scores - wanted).max(initial=0.0)))
        events_apart += len(set(got.events) ^ set(at_once.events)) + (got.events != at_once.events)
    exact = bundle.manifest.model.tolerance == 0
    seconds = len(samples) / bundle.manifest.input.sample_rate_hz
    return Equality(
        Path(bundle.source).stem, seconds, chunks, numbers, apart, len(at_once.events), events_apart, largest, exact
    )


def equalities() -> list[Equality]:
    """Of every shipped bundle."""
    return [equality(load(path)) for path in shipped()]


def speeds(seconds: float) -> list[dict[str, Any]]:
    """`training.speed` of every shipped bundle, with its parameters."""
    return [{**speed(load(path), seconds=seconds), "parameters": _parameters(path)} for path in shipped()]


def speed_untrained(task: str, settings: dict[str, str], seconds: float) -> dict[str, Any]:
    """`training.speed` of a net of these sizes, whatever its weights: they cost the same. Raises ConfigError."""
    made = train.chosen(task, settings)
    told = made.manifest(Provenance(recipe=task, commit="none", data_sha256="none", created="now"))
    return speed(from_bytes(with_manifest(graph(made.build().eval()), told), task), seconds=seconds)


def _parameters(path: Path) -> int:
    """Floats among the file's constants, the front's included."""
    kept = onnx.load(str(path)).graph.initializer
    return sum(int(np.prod(one.dims)) for one in kept if one.data_type != onnx.TensorProto.INT64)
