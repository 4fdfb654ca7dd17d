"""Continuous streams out of single clips: what the model hears in training, and what it ought to say when.

A batch continues the batch before it: a row is either fresh (a new stream, zero state) or goes on, its h, c and
the frontend's context carried. Words never cross the seam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.component import State
from pipeline.frontend import PowerSpectrum
from training import augment
from training.augment import Rng, Samples
from training.data import BACKGROUND, LABELS, Clip

if TYPE_CHECKING:
    from training.recipes.digits import Digits

BG = LABELS.index(BACKGROUND)
STRETCHES = (0.45, 0.55, 0.68, 0.82, 1.2, 1.4)
_LASTING = 77  # apart from the generators of batches
PACES = (0.78, 0.84, 0.9, 0.95, 1.0, 1.06, 1.12, 1.19, 1.26, 1.34)


@dataclass(frozen=True)
class Pools:
    """What streams are composed of. `others` is speech without digits at its own pace; `decoys` other words."""

    digits: tuple[Clip, ...]
    synthetic: tuple[Clip, ...]
    others: tuple[Clip, ...]
    decoys: tuple[Clip, ...]
    noises: tuple[Samples, ...]


@dataclass(frozen=True)
class Batch:
    """fresh `[B]` bool; power `[B, T, F]`; bank `[B, F, M]`; allowed `[B, T, C']` bool, the right classes."""

    fresh: NDArray[np.bool_]
    power: NDArray[np.float32]
    bank: NDArray[np.float32]
    allowed: NDArray[np.bool_]


@dataclass(frozen=True)
class Voice:
    """Who speaks a stream: one speaker's clips, and at which pace."""

    clips: tuple[Clip, ...]
    pace: float


@dataclass(frozen=True)
class Word:
    """A word placed in a stream (a digit, or an auxiliary class): samples start to end (one past the last)."""

    label: int
    start: int
    end: int


def targets(words: list[Word], frames: int, recipe: Digits) -> NDArray[np.bool_]:
    """`[T, C']`: background, but from the middle of a word until a little after its end the word alone is right.

    Before that the word or background is, and so it is while the decision fades out.
    """
    allowed = np.zeros((frames, len(LABELS) + recipe.auxiliary), bool)
    allowed[:, BG] = True
    for n, word in enumerate(words):
        start, end = word.start // recipe.hop_samples, -(-word.end // recipe.hop_samples)
        due = start + round(recipe.decide_from * (end - start))
        until = end + recipe.decide_after_frames
        if n + 1 < len(words):
            until = min(until, max(end + 3, words[n + 1].start // recipe.hop_samples + 2))
        allowed[start : until + recipe.fade_frames, word.label] = True
        allowed[due:until] = False
        allowed[due:until, word.label] = True
    return allowed


class Composer:
    """Batches without end, each wholly decided by (seed, index): a resumed run hears what an unbroken one would."""

    def __init__(self, pools: Pools, recipe: Digits) -> None:
        self.pools, self.recipe = pools, recipe
        self.frontend = PowerSpectrum(recipe.window_samples, recipe.hop_samples)
        self.samples = round(recipe.stream_s * recipe.sample_rate_hz) // recipe.hop_samples * recipe.hop_samples
        self._paced: dict[tuple[int, float], Samples] = {}
        self._stretched: dict[tuple[int, float], Samples] = {}
        self._tilts = _tilts(pools)
        self._channels = [sorted({clip.speaker for clip in pool}) for pool in (pools.digits, pools.others)]
        self._channels = [pool for pool in [*self._channels, sorted(self._tilts)] if pool]
        self._synthetic = _by_label(pools.synthetic)
        self._digits = _by_label(pools.digits)
        every = (pools.digits, pools.synthetic, pools.others, pools.decoys)
        self._speakers, self._artificial, self._foreigners, self._decoys = map(_by_speaker, every)

    def batch(self, index: int, context: State | None) -> tuple[Batch, State]:
        """Batch `index` and the frontend's state after it; `context` is the one before, None at the start of a pass."""
        recipe, rng = self.recipe, np.random.default_rng((self.recipe.seed, index))
        frames = self.samples // recipe.hop_samples
        fresh = rng.random(recipe.streams) < recipe.fresh
        lasts = recipe.batches_a_voice
        if lasts:
            fresh = (index + np.arange(recipe.streams)) % lasts == 0
        if context is None:
            context, fresh = self.frontend.initial_state(recipe.streams), np.ones(recipe.streams, bool)
        signal = np.empty((recipe.streams, self.samples), np.float32)
        allowed = np.empty((recipe.streams, frames, len(LABELS) + recipe.auxiliary), bool)
        channels = np.empty((recipe.streams, 1, self.frontend.bins), np.float32)
        banks = []
        for b in range(recipe.streams):
            # What lasts as long as the stream is drawn from a generator of its own, anew with every batch of it.
            own = np.random.default_rng((recipe.seed, b, (index + b) // lasts, _LASTING)) if lasts else rng
            signal[b], words = self.stream(rng, own, bool(fresh[b]))
            allowed[b] = targets(words, frames, recipe)
            channels[b, 0] = augment.channel(own, self.frontend.bins) if own.random() < 0.7 else 1.0
            warp = round(float(own.uniform(0.84, 1.2)), 2) if own.random() < 0.8 else 1.0
            banks.append(augment.filterbank(recipe.sample_rate_hz, recipe.window_samples, recipe.mels, warp))
        kept = {"context": np.where(fresh[:, None], np.float32(0), context["context"])}
        power, after = self.frontend.step(signal[:, :, None], kept)
        return Batch(fresh, power * channels, np.stack(banks), allowed), after

    def stream(self, rng: Rng, own: Rng, fresh: bool) -> tuple[Samples, list[Word]]:
        """`[N]` samples of one stream and the digits in it. Who speaks, and into what, is drawn from `own`."""
        rate_hz = self.recipe.sample_rate_hz
        x, words, clean = np.zeros(self.samples, np.float32), [], []
        level_db, at = own.uniform(-46, -14), 0
        foreign = own.random() < self.recipe.foreign
        voice = self._voice(own, foreign) if self.recipe.batches_a_voice else None
        tight = rng.random() < 0.15
        # All that is heard in this stream comes through one microphone, at times another corpus's: else the
        # model would learn which microphone recorded the digits.
        towards = self._channel(own) if own.random() < 0.8 else None
        share = np.float32(own.uniform(0.3, 1.1))
        if not (fresh and rng.random() < 0.5):
            at = int(rng.uniform(0.0, 0.8) * rate_hz)
        while True:
            clip, pace = self._draw(rng, foreign, voice)
            part, label = self._spoken(rng, clip, pace), clip.label
            if foreign and rng.random() < 0.15:
                part, label = _spliced(rng, part, self._spoken(rng, *self._draw(rng, foreign, voice))), BG
            if towards is not None:
                part = augment.retouch(part, np.clip(share * (towards - self._tilts[clip.speaker]), -24, 24))
            if label < BG and rng.random() < 0.4:
                part = augment.trimmed(part, rng.uniform(14, 40))
            if at + part.size > self.samples:
                break
            part = augment.level(part, level_db + rng.normal(0, self.recipe.level_spread_db))
            x[at : at + part.size] += part
            clean.append(part)
            if label != BG:
                first, last = (0, part.size) if label < BG else _extent(part)
                words.append(Word(label, at + first, at + last))
            gap_s = rng.uniform(0.0, 0.12) if tight else rng.exponential(0.3) + 0.1
            at += part.size + (0 if foreign else int(gap_s * rate_hz))
        if rng.random() < 0.25:
            x = augment.reverb(rng, x)
        x += self._noise(rng, level_db)
        return np.clip(np.rint(x * 32768), -32768, 32767).astype(np.float32) / np.float32(32768), words

    def _channel(self, rng: Rng) -> Samples:
        """The long-term spectrum `[bins]` dB of some speaker."""
        pool = self._channels[int(rng.integers(len(self._channels)))]
        return self._tilts[pool[int(rng.integers(len(pool)))]]

    def _spoken(self, rng: Rng, clip: Clip, pace: float) -> Samples:
        """The clip at one of the PACES, digits at times stretched; kept where a run draws them many times."""
        if clip.label < BG and rng.random() < self.recipe.stretched:
            rate = float(rng.choice(STRETCHES))
            stretch = (id(clip), rate)
            if stretch not in self._stretched:
                self._stretched[stretch] = augment.stretch(clip.samples, rate)
            return augment.speed(self._stretched[stretch], pace)
        key = (id(clip), pace)
        if key not in self._paced:
            self._paced[key] = augment.speed(clip.samples, pace)
        return self._paced[key]

    def _voice(self, own: Rng, foreign: bool) -> Voice | None:
        """Who speaks a stream alone, if it is not spoken by many."""
        pace, kind = float(own.choice(PACES)), own.random()
        if foreign:
            speakers = self._foreigners if kind < 0.7 or not self._decoys else self._decoys
        else:
            speakers = self._speakers if kind < 0.65 or not self._artificial else self._artificial
        if own.random() < self.recipe.mixed:
            return None
        return Voice(speakers[int(own.integers(len(speakers)))], pace)

    def _draw(self, rng: Rng, foreign: bool, voice: Voice | None) -> tuple[Clip, float]:
        pools = self.pools
        kind = rng.random()
        if voice is not None:
            wanted = voice.pace * rng.uniform(0.96, 1.04)
            pace = min(PACES, key=lambda known: abs(known - wanted))
            if foreign or rng.random() < 0.88:
                return _any(rng, voice.clips), pace
            return _any(rng, pools.decoys if kind < 0.3 and pools.decoys else pools.others or pools.decoys), pace
        pace = float(rng.choice(PACES))
        if foreign:
            return _any(rng, pools.others if kind < 0.7 or not pools.decoys else pools.decoys), pace
        label = int(rng.integers(10))
        if kind < 0.52 and self._digits[label]:
            return _any(rng, self._digits[label]), pace
        if kind < 0.84 and self._synthetic[label]:
            return _any(rng, self._synthetic[label]), pace
        if kind < 0.88 and pools.decoys:
            return _any(rng, pools.decoys), pace
        return _any(rng, pools.others or pools.decoys), pace

    def _noise(self, rng: Rng, level_db: float) -> Samples:
        kind = rng.random()
        if kind < self.recipe.quiet:
            return np.zeros(self.samples, np.float32)
        least_db, most_db = self.recipe.noise_below_db
        noise_db = level_db - rng.uniform(least_db, most_db)
        if kind < self.recipe.quiet + 0.6 * (1 - self.recipe.quiet) and self.pools.noises:
            noise = augment.excerpt(rng, self.pools.noises[int(rng.integers(len(self.pools.noises)))], self.samples)
        else:
            noise = augment.coloured(rng, self.samples, float(rng.uniform(0.0, 2.0)))
        return noise * np.float32(augment.decibels(noise_db))


def _extent(x: Samples, below_db: float = 22.0, hop: int = 160) -> tuple[int, int]:
    """Where the word lies in a clip with silence around it: its first sample and one past the last."""
    power = np.square(x[: x.size // hop * hop]).reshape(-1, hop).mean(axis=1)
    loud = np.flatnonzero(power >= power.max(initial=0.0) * 10 ** (-below_db / 10))
    return (int(loud[0]) * hop, int(loud[-1] + 1) * hop) if loud.size else (0, x.size)


def _tilts(pools: Pools) -> dict[str, Samples]:
    every: dict[str, list[Samples]] = {}
    for clip in (*pools.digits, *pools.synthetic, *pools.others, *pools.decoys):
        every.setdefault(clip.speaker, []).append(clip.samples)
    return {speaker: augment.tilt(clips) for speaker, clips in every.items()}


def _spliced(rng: Rng, x: Samples, y: Samples) -> Samples:
    """The beginning of one word and the end of another: a word of no language."""
    share = rng.uniform(0.3, 0.7)
    return np.concatenate([x[: int(share * x.size)], y[int(share * y.size) :]])


def _by_label(clips: tuple[Clip, ...]) -> list[tuple[Clip, ...]]:
    return [tuple(clip for clip in clips if clip.label == label) for label in range(10)]


def _by_speaker(clips: tuple[Clip, ...]) -> list[tuple[Clip, ...]]:
    every: dict[str, list[Clip]] = {}
    for clip in clips:
        every.setdefault(clip.speaker, []).append(clip)
    return [tuple(of) for of in every.values()]


def _any(rng: Rng, clips: tuple[Clip, ...]) -> Clip:
    return clips[int(rng.integers(len(clips)))]
