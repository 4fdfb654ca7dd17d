"""Arabic commands at 16 kHz: the corpus, and streams composed of its words.

A stream is a few words by one speaker, each at another pace, with gaps, through one microphone and room, in noise. Rows
are fresh or go on: then the state that another stream left is carried into this one. Words never cross the seam.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.frontend import PowerSpectrum
from training import augment, data
from training.augment import Rng, Samples

if TYPE_CHECKING:
    from training.recipes.commands import Commands

RATE_HZ = 16_000
BACKGROUND = "background"
WORDS = (
    *("backward", "cancel", "close", "digit", "direction", "disable", "down", "eight", "enable", "enter", "five"),
    *("forward", "four", "left", "move", "next", "nine", "no", "ok", "one", "open", "options", "previous", "receive"),
    *("record", "right", "rotate", "send", "seven", "six", "start", "stop", "three", "two", "undo", "up", "yes"),
    *("zero", "zoom in", "zoom out"),
)
LABELS = (*WORDS, BACKGROUND)
NOTHING = len(WORDS)
PACES = (0.85, 0.92, 1.0, 1.08, 1.18)
_QUIET_DB = 42.0  # under the loudest: what a word's quiet ends (a final m) may fall to
_MARGIN = RATE_HZ // 20  # and samples kept beyond them


@dataclass(frozen=True)
class Clip:
    """One recording of a word, `[N]` float32 at 16 kHz. In samples: where it is loud (start, end), and where it is said
    with its quiet ends (first, last)."""

    samples: Samples
    label: int
    speaker: str
    start: int
    end: int
    first: int
    last: int

    @classmethod
    def of(cls, samples: Samples, label: int, speaker: str) -> Clip:
        """With the word found in it."""
        quiet = loud(samples, _QUIET_DB)
        first, last = max(0, quiet[0] - _MARGIN), min(samples.size, quiet[1] + _MARGIN)
        return cls(samples, label, speaker, *loud(samples), first, last)

    @property
    def word(self) -> Samples:
        """The word alone."""
        return self.samples[self.first : self.last]


@cache
def clips(split: str, speakers: int = 0) -> tuple[Clip, ...]:
    """The `train` or `val` speakers' recordings, in a fixed order; of the first so many speakers, unless 0."""
    found = []
    folders = sorted(folder for folder in (data.corpus("arabic_commands") / split).iterdir() if folder.is_dir())
    for file in [file for folder in folders[: speakers or None] for file in sorted(folder.glob("*.flac"))]:
        label = WORDS.index(file.stem.rsplit("_", 1)[0])
        found.append(Clip.of(data.read(file, RATE_HZ), label, file.parent.name))
    return tuple(found)


@cache
def noises(part: str) -> tuple[Samples, ...]:
    """Recorded noises at 16 kHz: the first two thirds of each for `train`, the last for `test`."""
    whole = [data.read(file, RATE_HZ) for file in sorted(_noise_folder().glob("*.flac"))]
    return tuple(x[: x.size * 2 // 3] if part == "train" else x[x.size * 2 // 3 :] for x in whole)


@cache
def foreign(part: str, takes: int = 8) -> tuple[Samples, ...]:
    """English digits, words that are no command: three speakers for `train`, one for `test`; () without the corpus."""
    if not (data.folder() / "fsdd").is_dir():
        return ()
    speakers = data.SPEAKERS[:3] if part == "train" else data.SPEAKERS[3:]
    files = [f for s in speakers for n in range(10) for f in _digit(s, n)[:takes]]
    return tuple(data.read(file, RATE_HZ) for file in files)


def _digit(speaker: str, digit: int) -> list[Path]:
    return sorted((data.corpus("fsdd") / speaker).glob(f"{digit}_*.flac"))


def _noise_folder() -> Path:
    return data.corpus("noise")


def loud(x: Samples, below_db: float = 33.0, hop: int = 160) -> tuple[int, int]:
    """First sample of the word in a clip, and one past the last: what lies within `below_db` of its loudest 10 ms."""
    power = np.square(x[: x.size // hop * hop]).reshape(-1, hop).mean(axis=1)
    high = np.flatnonzero(power >= power.max(initial=0.0) * 10 ** (-below_db / 10))
    return (int(high[0]) * hop, int(high[-1] + 1) * hop) if high.size else (0, x.size)


@dataclass(frozen=True)
class Heard:
    """power `[B, T, F]`, fresh `[B]`, bank `[B, F, M]`, and `[B, T]` each: label (NOTHING: no word); sure: the label
    alone is right there, else background is as well; word: n + 1 while the nth word of a row is due, else 0."""

    power: NDArray[np.float32]
    label: NDArray[np.int64]
    sure: NDArray[np.bool_]
    word: NDArray[np.int64]
    fresh: NDArray[np.bool_]
    bank: NDArray[np.float32]


Composed = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]


class Composer:
    """Batches without end, each wholly decided by (seed, index).

    Composing a signal takes about as long as learning from it, so each is heard `recipe.reuse` times, through another
    microphone and another throat every time.
    """

    def __init__(self, spoken: tuple[Clip, ...], recipe: Commands, foreign: tuple[Samples, ...] = ()) -> None:
        self.recipe, self._foreign = recipe, foreign
        self.frontend = PowerSpectrum(recipe.window_samples, recipe.hop_samples)
        self.samples = recipe.stream_frames * recipe.hop_samples
        self._by_speaker: dict[str, list[Clip]] = {}
        for clip in spoken:
            self._by_speaker.setdefault(clip.speaker, []).append(clip)
        self._paced: dict[tuple[int, float, float], Samples] = {}
        self._composed: tuple[int, Composed] | None = None
        rng = np.random.default_rng(recipe.seed)
        coloured = tuple(augment.coloured(rng, 30 * RATE_HZ, exponent) for exponent in (0.0, 0.5, 1.0, 1.5, 2.0))
        self._noises = (*coloured, *noises("train"))

    def batch(self, index: int, begins: bool) -> Heard:
        """Batch `index`; at a pass's start (`begins`) every row is fresh."""
        recipe, rng = self.recipe, np.random.default_rng((self.recipe.seed, 1, index))
        rows, number = recipe.streams, index // recipe.reuse
        if self._composed is None or self._composed[0] != number:
            self._composed = number, self._compose(np.random.default_rng((recipe.seed, 0, number)))
        power, label, sure, word = self._composed[1]
        fresh = (rng.random(rows) < recipe.fresh) | begins
        channels = np.ones((rows, 1, self.frontend.bins), np.float32)
        banks = []
        for b in range(rows):
            if rng.random() < recipe.equalised:
                channels[b, 0] = equaliser(rng, self.frontend.bins)
            warp = round(float(rng.uniform(1 - recipe.warp, 1 + recipe.warp)), 2)
            banks.append(augment.filterbank(RATE_HZ, recipe.window_samples, recipe.mels, warp))
        return Heard(power * channels, label, sure, word, fresh, np.stack(banks))

    def _compose(self, rng: Rng) -> Composed:
        rows, frames = self.recipe.streams, self.recipe.stream_frames
        signal = np.zeros((rows, self.samples), np.float32)
        label = np.full((rows, frames), NOTHING)
        sure, word = np.ones((rows, frames), bool), np.zeros((rows, frames), np.int64)
        for b in range(rows):
            _mark(self._stream(rng, signal[b]), self.recipe, label[b], sure[b], word[b])
        power, _ = self.frontend.step(signal[:, :, None], self.frontend.initial_state(rows))
        return power, label, sure, word

    def _stream(self, rng: Rng, x: Samples) -> list[tuple[int, int, int]]:
        """Fill `x` `[N]` with words; (label, start, end) of each, in samples. NOTHING is a word of no language."""
        recipe = self.recipe
        speakers = sorted(self._by_speaker)
        own = self._by_speaker[speakers[int(rng.integers(len(speakers)))]]
        at = int(rng.uniform(0.0, recipe.lead_s) * RATE_HZ)
        gain_db, spans = rng.normal(0.0, 8.0), []
        pace = float(rng.choice(PACES))
        rate = float(rng.choice(recipe.rates)) if rng.random() < recipe.stretched else 1.0
        silent = rng.random() < recipe.silent
        while not silent:
            clip = own[int(rng.integers(len(own)))]
            part, label = self._spoken(clip, pace, rate), clip.label
            if self._foreign and rng.random() < recipe.foreign:
                other = self._foreign[int(rng.integers(len(self._foreign)))]
                part = other * np.float32(_rms(part) / max(_rms(other), 1e-6))
                label = NOTHING
            elif rng.random() < recipe.spliced:
                other = self._spoken(own[int(rng.integers(len(own)))], pace, rate)
                share = rng.uniform(0.35, 0.65)
                part = np.concatenate([part[: int(share * part.size)], other[int(share * other.size) :]])
                label = NOTHING
            if at + part.size > x.size:
                break
            x[at : at + part.size] += part * np.float32(augment.decibels(gain_db + rng.normal(0.0, 1.5)))
            before, after = (int(n / pace / rate) for n in (clip.start - clip.first, clip.last - clip.end))
            spans.append((label, at + before, at + max(before + 1, part.size - after)))
            at += part.size + int(rng.exponential(recipe.gap_s) * RATE_HZ)
        if rng.random() < recipe.reverberant:
            x[:] = augment.reverb(rng, x, RATE_HZ)
        # The stream may end, or fall silent, soon after the last word: what follows then is digital silence.
        end = spans[-1][2] + int(rng.uniform(0.02, 0.3) * RATE_HZ) if spans else x.size
        cut = min(end, x.size) if rng.random() < recipe.ending else x.size
        if rng.random() < recipe.noisy:
            loudness = _rms(x) if spans else augment.decibels(gain_db - 25.0)
            noise = augment.excerpt(rng, self._noises[int(rng.integers(len(self._noises)))], x.size)
            x += noise * np.float32(loudness * augment.decibels(-rng.uniform(recipe.snr_low_db, recipe.snr_high_db)))
        x[cut:] = 0.0
        np.clip(x, -1.0, 1.0, out=x)
        return spans

    def _spoken(self, clip: Clip, pace: float, rate: float = 1.0) -> Samples:
        """The clip's word, its tape faster by `pace`, its speaker by `rate` (the same pitch); kept: a run draws it many
        times."""
        key = (id(clip), pace, rate)
        if key not in self._paced:
            if pace != 1.0:
                x = augment.speed(self._spoken(clip, 1.0, rate), pace, RATE_HZ)
            else:
                x = clip.word if rate == 1.0 else augment.overlapped(clip.word, rate)
            self._paced[key] = x
        return self._paced[key]


def _rms(x: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def _mark(
    spans: list[tuple[int, int, int]],
    recipe: Commands,
    label: NDArray[np.int64],
    sure: NDArray[np.bool_],
    word: NDArray[np.int64],
) -> None:
    """When a word is due: from a part of its length until a while after its end, or until the next one has begun."""
    frames, hop = len(label), recipe.hop_samples
    spoken = [span for span in spans if span[0] != NOTHING]
    for n, (name, first, last) in enumerate(spoken):
        start, end = first // hop, -(-last // hop)
        due = start + round(recipe.decide_from * (end - start))
        until = end + recipe.decide_after_frames
        following = [s[1] for s in spans if s[1] > first]
        if following:
            until = min(until, following[0] // hop)
        until = min(until, frames)
        faded = until + recipe.fade_frames
        label[start:faded], label[faded:] = name, NOTHING
        sure[start:due], sure[due:until], sure[until:faded], sure[faded:] = False, True, False, True
        word[due:until] = n + 1


def equaliser(rng: Rng, bins: int) -> Samples:
    """`[bins]` factors on the power spectrum to 8 kHz: a smooth random curve, tilted; at times a telephone's band."""
    knots = rng.normal(0.0, rng.uniform(0.0, 6.0), 8)
    curve_db = np.interp(np.linspace(0, 7, bins), np.arange(8), knots) + rng.uniform(-9, 9) * np.linspace(-1, 1, bins)
    if rng.random() < 0.2:
        position_hz = np.linspace(0.0, RATE_HZ / 2, bins)
        low_hz, high_hz = rng.uniform(60, 300), rng.uniform(3400, 7500)
        curve_db -= 12.0 * np.maximum(0, np.log2(low_hz / np.maximum(position_hz, 20)))
        curve_db -= 24.0 * np.maximum(0, np.log2(np.maximum(position_hz, 20) / high_hz))
    return np.asarray(10.0 ** (curve_db / 10.0), np.float32)
