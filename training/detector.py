"""Continuous audio to judge a detector by: a speaker's words in noise, and speech without any of the words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.component import Array
from pipeline.head import Events
from training import augment, data
from training.compose import Word
from training.data import LABELS
from training.keywords import Head, as_int16, decide

THRESHOLDS = (*(float(t) for t in np.round(np.arange(0.2, 0.96, 0.05), 2)), 0.97, 0.98, 0.99)


@dataclass(frozen=True)
class Scene:
    """A recording `[N]` at 8 kHz and the words in it."""

    name: str
    samples: NDArray[np.float32]
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Hits:
    """right: words met by an event of their label. extra: events that met no word of their label. overlap `[right]`."""

    right: int
    extra: int
    overlap: NDArray[np.float64]


def scenes(speaker: str, snr_db: float = 10.0, seed: int = 21) -> list[Scene]:
    """All takes of a speaker, shuffled, with gaps of 0.3 to 1.5 s, in white, pink and recorded noise.

    The noise lies `snr_db` under the mean power of the words. Of recorded noises the last third is used, which
    training never hears.
    """
    rng = np.random.default_rng(seed)
    clips = data.digits((speaker,))
    order = rng.permutation(len(clips))
    kinds = [None, None, *data.noises("test")]
    found = []
    for n, kind in enumerate(kinds):
        parts: list[NDArray[np.float32]] = []
        words, at = [], 0
        for index in order[n :: len(kinds)]:
            gap = np.zeros(int(rng.uniform(0.3, 1.5) * 8000), np.float32)
            clip = clips[index]
            at += gap.size
            words.append(Word(clip.label, at, at + clip.samples.size))
            parts += [gap, clip.samples]
            at += clip.samples.size
        x = np.concatenate([*parts, np.zeros(8000, np.float32)])
        spoken = np.concatenate(parts[1::2])
        rms = float(np.sqrt(np.mean(np.square(spoken)))) * augment.decibels(-snr_db)
        noise = augment.coloured(rng, x.size, float(n)) if kind is None else augment.excerpt(rng, kind, x.size)
        found.append(Scene(f"{speaker}-{n}", x + np.float32(rms) * noise, tuple(words)))
    return found


def alarms() -> list[Scene]:
    """The Arabic `val` speakers, each played on end: whatever is heard there is false."""
    every = data.others("val")
    speakers = sorted({clip.speaker for clip in every})
    return [Scene(s, np.concatenate([clip.samples for clip in every if clip.speaker == s]), ()) for s in speakers]


def detected(events: Events, scene: Scene, hop_samples: int) -> Hits:
    """Match events, their times in frames, to words: the same label, and at least one frame in common; each event and
    word once."""
    starts = np.array([word.start for word in scene.words]) / hop_samples
    ends = np.array([word.end for word in scene.words]) / hop_samples
    labels = np.array([word.label for word in scene.words])
    met = np.zeros(len(labels), bool)
    extra, overlaps = 0, []
    for label, start, end in zip(events.label, events.start, events.end, strict=True):
        common = np.minimum(ends, end) - np.maximum(starts, start)
        fits = np.flatnonzero((common > 0) & (labels == label) & ~met)
        if not fits.size:
            extra += 1
            continue
        best = fits[common[fits].argmax()]
        met[best] = True
        overlaps.append(common[best] / (max(ends[best], end) - min(starts[best], start)))
    return Hits(int(met.sum()), extra, np.array(overlaps))


def scores_of(bundle: Bundle, scene: Scene) -> Array:
    """`[T, C]` of a long recording, through the bundle."""
    return bundle.forward(as_int16(scene.samples)).scores


def curve(bundle: Bundle, speaker: str, head: Head, hop_samples: int) -> list[dict[str, float]]:
    """The detector at every threshold: share of words detected, false alarms an hour, and in how good a place."""
    spoken = [(scene, scores_of(bundle, scene)) for scene in scenes(speaker)]
    foreign = [(scene, scores_of(bundle, scene)) for scene in alarms()]
    hours = sum(scene.samples.size for scene, _ in foreign) / 8000 / 3600
    points = []
    for threshold in THRESHOLDS:
        spec = head.spec(threshold=threshold, release=min(head.release, threshold))
        hits = [detected(decide(x[None], spec, LABELS), scene, hop_samples) for scene, x in spoken]
        false = sum(len(decide(x[None], spec, LABELS).label) for _, x in foreign)
        words = sum(len(scene.words) for scene, _ in spoken)
        points.append(
            {
                "threshold": threshold,
                "detected": sum(h.right for h in hits) / words,
                "wrong_or_extra": sum(h.extra for h in hits) / words,
                "overlap": float(np.mean(np.concatenate([h.overlap for h in hits]))) if hits else 0.0,
                "false_alarms_an_hour": false / hours,
            }
        )
    return points
