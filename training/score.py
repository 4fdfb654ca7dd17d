"""From frame probabilities to what a user gets: a word for every clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.component import Array
from pipeline.frontend import PowerSpectrum
from pipeline.head import Events, Keywords
from pipeline.manifest import KeywordsHead
from training.data import Clip
from training.models.lstm import KeywordLSTM
from training.recipes.digits import BACKGROUND, DIGITS, LABELS, Head, Recipe


def head(spec: Head, **changes: Any) -> KeywordsHead:
    """The manifest's head as a recipe sets it, with changes."""
    values = {name: getattr(spec, name) for name in KeywordsHead.model_fields if hasattr(spec, name)}
    return KeywordsHead(background=BACKGROUND, **{**values, **changes})


def padded(clips: tuple[Clip, ...], tail_samples: int, hop_samples: int) -> NDArray[np.float32]:
    """`[B, N]`: clips from the first sample on, silence after the end, whole hops."""
    longest = -(-(max(clip.samples.size for clip in clips) + tail_samples) // hop_samples) * hop_samples
    signal = np.zeros((len(clips), longest), np.float32)
    for b, clip in enumerate(clips):
        signal[b, : clip.samples.size] = clip.samples
    return signal


@torch.no_grad()
def forward(model: KeywordLSTM, signal: NDArray[np.float32], recipe: Recipe) -> NDArray[np.float32]:
    """`[B, N]` samples to `[B, T, C]` probabilities by torch, from a fresh state."""
    frontend = PowerSpectrum(recipe.window_samples, recipe.hop_samples)
    power, _ = frontend.step(signal[:, :, None], frontend.initial_state(len(signal)))
    model.eval()
    probabilities, _, _ = model(torch.from_numpy(power), *model.initial_state(len(signal)))
    return np.asarray(probabilities.numpy())


def decide(probabilities: Array, spec: KeywordsHead) -> Events:
    """`[B, T, C]` whole signals to events, their times in frames; the flushed ones included."""
    keywords = Keywords(spec, LABELS)
    events, state = keywords.step(probabilities, keywords.initial_state(len(probabilities)))
    rest = keywords.flush(state)
    return Events(*(np.concatenate(column) for column in zip(events, rest, strict=True)))


def best(events: Events, clips: int) -> NDArray[np.int64]:
    """`[clips]`: the label of each clip's event of the highest score (as published), -1 where there is none."""
    label, score = np.full(clips, -1), np.zeros(clips)
    for b, name, value in zip(events.stream, events.label, events.score.round(6), strict=True):
        if value > score[b]:
            label[b], score[b] = name, value
    return label


def pooled(probabilities: Array) -> NDArray[np.int64]:
    """`[B]`: the digit with the highest sum of probabilities over time, whatever the threshold."""
    return np.asarray(probabilities[:, :, : len(DIGITS)].sum(axis=1).argmax(axis=1))


def clips(model: KeywordLSTM, of: tuple[Clip, ...], recipe: Recipe) -> dict[str, Any]:
    """accuracy by events and by pooled scores, in 0..1; the confusion `[10, 11]` (last column: no word); doubt.

    doubt: the mean over clips of -log of the right digit's share in the pooled scores, in nats.
    """
    digits = tuple(clip for clip in of if clip.label < len(DIGITS))
    wanted = np.array([clip.label for clip in digits])
    found, summed, shares = [], [], []
    for b in range(0, len(digits), 250):
        part = digits[b : b + 250]
        scores = forward(model, padded(part, recipe.head.tail_frames * recipe.hop_samples, recipe.hop_samples), recipe)
        found.append(best(decide(scores, head(recipe.head)), len(part)))
        summed.append(pooled(scores))
        share = scores[:, :, : len(DIGITS)].sum(axis=1, dtype=np.float64)
        shares.append(share[np.arange(len(part)), wanted[b : b + 250]] / share.sum(axis=1))
    heard = np.concatenate(found)
    confusion = np.zeros((len(DIGITS), len(DIGITS) + 1), int)
    np.add.at(confusion, (wanted, heard), 1)
    return {
        "events": float(np.mean(heard == wanted)),
        "pooled": float(np.mean(np.concatenate(summed) == wanted)),
        "doubt": float(-np.log(np.concatenate(shares)).mean()),
        "confusion": confusion,
    }
