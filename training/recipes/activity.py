"""Six postures and gaits, and the six ways from one posture to another, from a phone on the waist at 50 Hz.

A window of 1.28 s every 0.16 s, one convolution as long as the window, then a GRU (`crnn`): about 50,000 weights.
Cost: about four minutes a training on one core; expected: see `training/metrics/activity.json`, five folds of subjects
that were left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bundle import Bundle
from pipeline.component import Array
from pipeline.frontend import Window
from pipeline.manifest import ActivityHead, InputSpec, Manifest, Provenance, WindowFrontend
from training import activity_data as corpus
from training import data, sensing
from training.activity_data import CHANNELS, POSTURES, RATE_HZ, UNKNOWN
from training.graph import model_spec
from training.losses import class_weights, cross_entropy
from training.models import Net, Standardise
from training.recipe import Recipe
from training.task import Batch, Task, encoder_of, whole

LICENCE = "Apache-2.0; learnt from HAPT (UCI 341, CC BY 4.0)"
JUDGED_SAMPLES = 128  # the corpus's windows of 2.56 s


@dataclass(frozen=True)
class Activity(Recipe):
    """Fields beyond `Recipe`'s. window_samples, hop_samples: of a frame. filters: of the convolution before the GRU.

    batch_frames: of a batch; life: a stream ends after so many batches at most. turn_degrees: by how much (one standard
    deviation) the phone may sit otherwise. hold_frames: the head's. recordings: only the first so many, for tests.
    """

    name: str = "activity"
    window_samples: int = 64
    hop_samples: int = 8
    filters: int = 64
    batch_frames: int = 75
    life: int = 4
    turn_degrees: float = 12.0
    hold_frames: int = 3
    recordings: int = 0


RECIPE = Activity(
    cell="crnn",
    layers=1,
    hidden=64,
    dropout_input=0.1,
    dropout=0.3,
    dropout_output=0.3,
    passes=40,
    batches=60,
    streams=32,
    learning_rate=3e-3,
    weight_decay=1e-2,
    label_smoothing=0.05,
    class_balance=0.5,
    average=0.998,
)
TINY = {
    "hidden": "24",
    "filters": "24",
    "recordings": "4",
    "streams": "8",
    "passes": "3",
    "batches": "12",
    "average": "0.5",
    "learning_rate": "1e-2",
}


class ActivityTask(Task[Activity]):
    """21 subjects in five folds."""

    reads = ("label_smoothing", "class_balance")
    folds = corpus.FOLDS
    max_bytes = 600_000
    note = "scores: five folds of left-out subjects of the same recipe; the shipped weights learnt from all 21 subjects"

    @cached_property
    def _split(self) -> tuple[tuple[corpus.Recording, ...], tuple[corpus.Recording, ...]]:
        learnt, rest = corpus.split(self.recipe.leave_out)
        few = self.recipe.recordings or None
        return learnt[:few], rest[:few]

    @cached_property
    def _frontend(self) -> Window:
        return Window(self.recipe.window_samples, self.recipe.hop_samples, CHANNELS)

    @cached_property
    def _class_weights(self) -> Tensor:
        counts = added(np.bincount(one.labels + 1, minlength=13)[1:] for one in self._split[0])
        return class_weights(torch.as_tensor(counts), self.recipe.class_balance)

    def _frames(self, samples: Array) -> Array:
        """`[B, N, 6]` whole signals to `[B, T, F]`."""
        return self._frontend.step(samples, self._frontend.initial_state(len(samples)))[0]

    def _frame_labels(self, label: Array) -> Array:
        """`[B, N]` to `[B, T]`: a frame is what the middle of its new samples is."""
        hop = self.recipe.hop_samples
        return label[:, hop // 2 :: hop][:, : label.shape[1] // hop]

    def build(self) -> Net:
        r = self.recipe
        front = Standardise(r.window_samples * CHANNELS)
        usual = {"channels": (r.filters,), "taps": (1,), "bands": (front.outputs,)} if r.cell == "crnn" else {}
        chosen = dataclasses.replace(r, options={**usual, **r.options})
        return Net(front, encoder_of(chosen, front.outputs), len(corpus.labels()))

    @torch.no_grad()
    def prepare(self, net: Net) -> None:
        some = [self._frames(one.samples[None, : len(one.samples) // 64 * 64])[0, ::8] for one in self._split[0]]
        net.front.fit(net.features(torch.from_numpy(np.concatenate(some))))

    def batch(self, index: int, context: Any) -> tuple[Batch, Any]:
        """Streams go on from the batch before, or begin anew somewhere in some recording."""
        r, rng = self.recipe, np.random.default_rng([self.recipe.seed, index])
        going, state = context or ([None] * r.streams, self._frontend.initial_state(r.streams))
        size, fresh = r.batch_frames * r.hop_samples, np.zeros(r.streams, bool)
        parts, rest = [], []
        for b, stream in enumerate(going):
            if stream is None:
                fresh[b], stream = True, self._begin(rng, size)
            x, y = stream
            parts.append((x[:size], y[:size]))
            rest.append((x[size:], y[size:]) if len(x) >= 2 * size else None)
        state = {name: np.where(fresh[:, None, None], np.float32(0), value) for name, value in state.items()}
        frames, state = self._frontend.step(np.stack([x for x, _ in parts]), state)
        label = torch.from_numpy(self._frame_labels(np.stack([y for _, y in parts])))
        weight = (label != UNKNOWN).to(torch.float32)
        made = Batch(torch.from_numpy(frames), {"label": label.clamp_min(0)}, weight, torch.from_numpy(fresh))
        return made, (rest, state)

    def _begin(self, rng: np.random.Generator, size: int) -> tuple[Array, Array]:
        """One to `life` batches of a recording, from anywhere in it."""
        learnt = self._split[0]
        one = learnt[rng.integers(len(learnt))]
        length = min(size * int(rng.integers(1, self.recipe.life + 1)) * 5 // 4, len(one.samples))
        at = int(rng.integers(0, len(one.samples) - length + 1))
        piece = slice(at, at + length)
        x, y = corpus.otherwise(one.samples[piece], one.labels[piece], rng, self.recipe.turn_degrees)
        if len(x) < size:  # it went much faster: stand still at the end, labelled as nothing
            x = np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)])
            y = np.concatenate([y, np.full(size - len(y), UNKNOWN)])
        return x, y

    def loss(self, logits: Tensor, target: dict[str, Tensor], weight: Tensor) -> Tensor:
        return cross_entropy(logits, target["label"], weight, self.recipe.label_smoothing, self._class_weights)

    def validate(self, net: Net) -> dict[str, float]:
        """Whole recordings of the subjects left out (with nobody left out, of some who were learnt from)."""
        losses, right, counts = [], 0, np.zeros((12, 12), np.int64)
        for one in self._split[1]:
            cut = len(one.samples) // self.recipe.hop_samples * self.recipe.hop_samples
            frames = torch.from_numpy(self._frames(one.samples[None, :cut]))
            p, label = whole(net, frames)[0].numpy(), self._frame_labels(one.labels[None, :cut])[0]
            known = label != UNKNOWN
            losses.append(-np.log(np.maximum(p[known, label[known]], 1e-9)))
            np.add.at(counts, (label[known], p[known].argmax(axis=1)), 1)
        loss = np.concatenate(losses)
        right = int(np.trace(counts))
        return {"loss": float(loss.mean()), "frames_right": right / len(loss), "macro_f1": macro_f1(counts)}

    def manifest(self, provenance: Provenance) -> Manifest:
        r = self.recipe
        return Manifest(
            task="activity by a phone on the waist: acceleration x, y, z in g, rotation x, y, z in rad/s",
            labels=corpus.labels(),
            licence=LICENCE,
            provenance=provenance,
            input=InputSpec(sample_rate_hz=RATE_HZ, channels=CHANNELS, sample_type="float32"),
            frontend=WindowFrontend(window_samples=r.window_samples, hop_samples=r.hop_samples),
            model=model_spec(self.build()),
            head=ActivityHead(hold_frames=r.hold_frames),
        )

    def evaluate(self, bundle: Bundle) -> dict[str, Any]:
        """Windows right of the six: in the stream, in pieces of 30 s, alone; per-sample F1 of the twelve, by events."""
        rest = self._split[1]
        signals = [one.samples for one in rest]
        at_once, streamed = sensing.by_forward(bundle, signals), sensing.by_step(bundle, signals)
        told = [judged(one, *said, bundle) for one, said in zip(rest, streamed, strict=True)]
        again = [judged(one, *said, bundle) for one, said in zip(rest, at_once, strict=True)]
        by_window, by_sample = (added(part[n] for part in told) for n in (0, 1))
        alone, pieces = by_windows_alone(bundle, rest), by_pieces(bundle, rest)
        count = int(by_window.sum())
        return {
            "subjects": sorted({one.subject for one in rest}),
            "windows": count,
            "windows_right_streamed": int(np.trace(by_window)),
            "windows_right_whole": int(np.trace(added(part[0] for part in again))),
            "same": sensing.same(at_once, streamed),
            "accuracy_windows": float(np.trace(by_window) / count),
            "accuracy_windows_alone": float(np.trace(alone) / count),
            "accuracy_windows_pieces": float(np.trace(pieces) / pieces.sum()),
            "macro_f1_samples": macro_f1(by_sample),
            "accuracy_samples": float(np.trace(by_sample) / by_sample.sum()),
            "f1": dict(zip(bundle.manifest.labels, f1(by_sample).round(4).tolist(), strict=True)),
            "confusion_windows": by_window.tolist(),
            "confusion_samples": by_sample.tolist(),
        }

    def summary(self, folds: dict[str, dict[str, Any]]) -> dict[str, float]:
        """Windows pooled over the folds; F1 of all samples together, which is not the mean of the folds' F1."""
        every = list(folds.values())
        count = sum(one["windows"] for one in every)
        pooled = added(np.array(one["confusion_samples"]) for one in every)
        return {
            "subjects_left_out": float(sum(len(one["subjects"]) for one in every)),
            "accuracy_windows": sum(one["windows_right_streamed"] for one in every) / count,
            "worst_fold_accuracy_windows": min(one["accuracy_windows"] for one in every),
            "accuracy_windows_alone": sum(one["accuracy_windows_alone"] * one["windows"] for one in every) / count,
            "accuracy_windows_pieces": sum(one["accuracy_windows_pieces"] * one["windows"] for one in every) / count,
            "macro_f1_samples": macro_f1(pooled),
            "mean_macro_f1_samples": sum(one["macro_f1_samples"] for one in every) / len(every),
        }

    def pictures(self, folds: dict[str, dict[str, Any]], folder: Path) -> None:
        names = corpus.labels()
        names_of = ("confusion_windows", "confusion_samples")
        windows, samples = (added(np.array(one[name]) for one in folds.values()) for name in names_of)
        sensing.plot_confusion(windows, names[:POSTURES], folder / "confusion_windows.png", "windows of 2.56 s")
        sensing.plot_confusion(samples, names, folder / "confusion_samples.png", "samples, by the head's events")

    def data_sha256(self) -> str:
        folder = data.corpus("activity")
        return sensing.sha256(folder.glob("*.*"), folder)


def judged(
    one: corpus.Recording, events: Any, scores: Array, bundle: Bundle
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Confusions of a recording: of its windows `[6, 6]`, of its samples `[12, 12]`.

    A window is what the frames that end within it say on average, of the six; a sample is what its event says.
    """
    hop = bundle.manifest.hop_samples
    by_window, by_sample = np.zeros((POSTURES, POSTURES), np.int64), np.zeros((12, 12), np.int64)
    for at, label in corpus.windows(one.labels, JUDGED_SAMPLES):
        said = scores[at // hop : (at + JUDGED_SAMPLES) // hop, :POSTURES].mean(axis=0).argmax()
        by_window[label, said] += 1
    said = np.zeros(len(one.labels), np.int64)
    for event in events:
        said[round(event.start_s * RATE_HZ) : round(event.end_s * RATE_HZ)] = bundle.manifest.labels.index(event.label)
    known = one.labels != UNKNOWN
    np.add.at(by_sample, (one.labels[known], said[known]), 1)
    return by_window, by_sample


def by_windows_alone(bundle: Bundle, rest: tuple[corpus.Recording, ...]) -> NDArray[np.int64]:
    """`[6, 6]`: every window a stream of its own, as the corpus's literature has it; the mean of its frames speaks."""
    counts = np.zeros((POSTURES, POSTURES), np.int64)
    pairs = [(one.samples[at : at + JUDGED_SAMPLES], y) for one in rest for at, y in corpus.windows(one.labels)]
    said = sensing.by_step(bundle, [x for x, _ in pairs], most=JUDGED_SAMPLES)
    for (_, label), (_, scores) in zip(pairs, said, strict=True):
        counts[label, scores[:, :POSTURES].mean(axis=0).argmax()] += 1
    return counts


def by_pieces(bundle: Bundle, rest: tuple[corpus.Recording, ...], seconds: float = 30.0) -> NDArray[np.int64]:
    """`[6, 6]` of windows of recordings cut into pieces, each a stream of its own: what is left when no memory of the
    recording's script can help."""
    size, counts = int(seconds * RATE_HZ), []
    for one in rest:
        parts = [slice(at, at + size) for at in range(0, len(one.samples), size)]
        cut = [corpus.Recording(one.name, one.subject, one.samples[part], one.labels[part]) for part in parts]
        said = sensing.by_step(bundle, [piece.samples for piece in cut])
        counts += [judged(piece, *words, bundle)[0] for piece, words in zip(cut, said, strict=True)]
    return added(counts)


def added(counts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Confusions of several together."""
    return np.asarray(np.sum(list(counts), axis=0))


def f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """`[C]` of a confusion `[C, C]`: 2 tp / (2 tp + fp + fn)."""
    right = np.diag(counts)
    return np.asarray(2 * right / np.maximum(counts.sum(axis=0) + counts.sum(axis=1), 1))


def macro_f1(counts: NDArray[np.int64]) -> float:
    """The mean of the classes' F1, each counting alike."""
    return float(f1(counts).mean())


def task(recipe: Activity = RECIPE) -> ActivityTask:
    """The task under a recipe."""
    return ActivityTask(recipe)
