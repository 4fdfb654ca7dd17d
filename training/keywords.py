"""Tasks that hear words: from frame probabilities to what a user gets, a word for every clip, whole and streamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batcher import Batcher
from pipeline.bundle import Bundle
from pipeline.component import Array
from pipeline.frontend import PowerSpectrum
from pipeline.head import Events, Keywords
from pipeline.manifest import KeywordsHead
from pipeline.output import Event as Heard
from training.models.net import Net
from training.task import whole

Samples = NDArray[np.float32]
BACKGROUND = "background"
_AT_A_TIME = 200


@dataclass(frozen=True)
class Head:
    """The head's settings (`pipeline.manifest.KeywordsHead`) and the silence after the end; lengths in frames."""

    smooth_frames: int = 10
    threshold: float = 0.8
    release: float = 0.1
    final_threshold: float = 0.02
    final_frames: int = 120
    hold_frames: int = 2
    refractory_frames: int = 0
    lead_frames: int = 12
    trail_frames: int = 12
    tail_frames: int = 20

    def spec(self, **changes: Any) -> KeywordsHead:
        """The manifest's head, with changes."""
        values = {name: getattr(self, name) for name in KeywordsHead.model_fields if hasattr(self, name)}
        return KeywordsHead(background=BACKGROUND, **{**values, **changes})


def padded(signals: Sequence[Samples], tail_samples: int, hop_samples: int) -> Samples:
    """`[B, N]`: signals from the first sample on, silence after the end, whole hops."""
    longest = -(-(max(x.size for x in signals) + tail_samples) // hop_samples) * hop_samples
    together = np.zeros((len(signals), longest), np.float32)
    for b, x in enumerate(signals):
        together[b, : x.size] = x
    return together


def probabilities(net: Net, signals: Samples, window_samples: int, hop_samples: int) -> Samples:
    """`[B, N]` samples to `[B, T, C]` by torch, from a fresh state."""
    frontend = PowerSpectrum(window_samples, hop_samples)
    power, _ = frontend.step(signals[:, :, None], frontend.initial_state(len(signals)))
    net.eval()
    return np.asarray(whole(net, torch.from_numpy(power)).numpy())


def decide(scores: Array, spec: KeywordsHead, labels: tuple[str, ...]) -> Events:
    """`[B, T, C]` whole signals to events, their times in frames; the flushed ones included."""
    keywords = Keywords(spec, labels)
    events, state = keywords.step(scores, keywords.initial_state(len(scores)))
    rest = keywords.flush(state)
    return Events(*(np.concatenate(column) for column in zip(events, rest, strict=True)))


def best(events: Events, clips: int) -> NDArray[np.int64]:
    """`[clips]`: the label of each clip's event of the highest score (as published), -1 where there is none."""
    label, score = np.full(clips, -1), np.zeros(clips)
    for b, name, value in zip(events.stream, events.label, events.score.round(6), strict=True):
        if value > score[b]:
            label[b], score[b] = name, value
    return label


def pooled(scores: Array) -> NDArray[np.int64]:
    """`[B]`: the word of the highest sum of probabilities over time, whatever the threshold. The last class is none."""
    return np.asarray(scores[:, :, :-1].sum(axis=1).argmax(axis=1))


def figures(
    net: Net, signals: Sequence[Samples], wanted: Array, labels: tuple[str, ...], recipe: Any
) -> dict[str, Any]:
    """accuracy by events and by pooled scores, in 0..1; confusion `[words, words + 1]` (last column: no word); loss.

    loss: the mean over clips of -log of the right word's share in the pooled scores, in nats.
    recipe: has window_samples, hop_samples and head.
    """
    words = len(labels) - 1
    found, summed, shares = [], [], []
    tail = recipe.head.tail_frames * recipe.hop_samples
    for b in range(0, len(signals), _AT_A_TIME):
        part = padded(signals[b : b + _AT_A_TIME], tail, recipe.hop_samples)
        scores = probabilities(net, part, recipe.window_samples, recipe.hop_samples)
        found.append(best(decide(scores, recipe.head.spec(), labels), len(part)))
        summed.append(pooled(scores))
        share = scores[:, :, :words].sum(axis=1, dtype=np.float64)
        shares.append(share[np.arange(len(part)), wanted[b : b + _AT_A_TIME]] / share.sum(axis=1))
    heard = np.concatenate(found)
    return {
        "loss": float(-np.log(np.maximum(np.concatenate(shares), 1e-30)).mean()),
        "events": float(np.mean(heard == wanted)),
        "pooled": float(np.mean(np.concatenate(summed) == wanted)),
        "confusion": confusion(wanted, heard, words),
    }


def confusion(wanted: Array, heard: Array, words: int) -> NDArray[np.int64]:
    """`[words, words + 1]` counts: spoken in rows, heard in columns, the last one for no word (-1)."""
    counts = np.zeros((words, words + 1), np.int64)
    np.add.at(counts, (wanted, heard), 1)
    return counts


def as_int16(x: Array) -> NDArray[np.int16]:
    """Samples in -1..1 back to what recordings hold."""
    return np.asarray(np.clip(np.rint(x * 32768), -32768, 32767).astype(np.int16))


def by_forward(bundle: Bundle, signals: Sequence[Samples]) -> tuple[list[int], list[int]]:
    """Labels of every clip by `forward`: (from events, from pooled scores); -1 where there is no event."""
    found, summed = [], []
    for x in signals:
        events, scores, _ = bundle.forward(as_int16(x))
        found.append(int(best(events, 1)[0]))
        summed.append(int(pooled(scores[None])[0]))
    return found, summed


def by_step(bundle: Bundle, signals: Sequence[Samples], seed: int = 3) -> list[int]:
    """Labels of every clip by streaming step: many clips in one batch, each in chunks of its own random sizes."""
    rng = np.random.default_rng(seed)
    batcher = Batcher(bundle)
    most = int(bundle.manifest.input.sample_rate_hz / 5)
    rows = np.array([batcher.layout.blank] * len(signals))
    heard: list[list[Heard]] = [[] for _ in signals]
    at = np.zeros(len(signals), int)
    sizes = np.array([x.size for x in signals])
    live = np.arange(len(signals))
    while live.size:
        until = np.minimum(at[live] + rng.integers(1, most, live.size), sizes[live])
        chunks = [as_int16(signals[i][at[i] : e])[:, None] for i, e in zip(live.tolist(), until, strict=True)]
        some = rows[live]
        for i, output in zip(live, batcher.run(some, chunks, until == sizes[live]), strict=True):
            heard[i] += output.events
        rows[live] = some
        at[live] = until
        live = live[until < sizes[live]]
    labels = bundle.manifest.labels
    return [labels.index(max(events, key=lambda e: e.score).label) if events else -1 for events in heard]


def judged(bundle: Bundle, signals: Sequence[Samples], wanted: Sequence[int]) -> dict[str, Any]:
    """Counts whole and streamed, and whether they agree in every clip; by pooled scores; without event; confusion."""
    events, summed = by_forward(bundle, signals)
    streamed = by_step(bundle, signals)

    def right(labels: list[int]) -> int:
        return sum(a == b for a, b in zip(labels, wanted, strict=True))

    return {
        "clips": len(wanted),
        "whole_right": right(events),
        "streamed_right": right(streamed),
        "same": events == streamed,
        "pooled_right": right(summed),
        "no_event": streamed.count(-1),
        "accuracy_streaming": right(streamed) / len(wanted),
        "accuracy_pooled": right(summed) / len(wanted),
        "confusion": confusion(np.array(wanted), np.array(streamed), len(bundle.manifest.labels) - 1).tolist(),
    }
