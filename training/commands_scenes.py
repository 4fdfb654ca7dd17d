"""What the commands model is judged by beyond clean clips: clips in noise, and words in a long stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.bundle import Bundle
from training import augment, data
from training.augment import Samples
from training.commands_data import RATE_HZ, Clip, foreign, noises
from training.compose import Word
from training.detector import Scene, detected
from training.keywords import as_int16


def noisy(clips: tuple[Clip, ...], snr_db: float, seed: int = 21) -> list[Samples]:
    """Each clip with an excerpt of a recorded noise of which training never heard this part, `snr_db` under the mean
    power of the whole clip."""
    rng = np.random.default_rng((seed, round(10 * snr_db) % 10_000))
    kinds, found = noises("test"), []
    for clip in clips:
        noise = augment.excerpt(rng, kinds[int(rng.integers(len(kinds)))], clip.samples.size)
        rms = float(np.sqrt(np.mean(np.square(clip.samples)))) * augment.decibels(-snr_db)
        found.append(np.clip(clip.samples + np.float32(rms) * noise, -1, 1).astype(np.float32))
    return found


def long(clips: tuple[Clip, ...], snr_db: float = 20.0, seed: int = 22) -> list[Scene]:
    """All words of each speaker in one recording, shuffled, gaps of 0.2 to 1 s, in one recorded noise."""
    rng = np.random.default_rng(seed)
    kinds, found = noises("test"), []
    for n, speaker in enumerate(sorted({clip.speaker for clip in clips})):
        own = [clip for clip in clips if clip.speaker == speaker]
        parts: list[Samples] = []
        words, at = [], 0
        for index in rng.permutation(len(own)):
            gap, clip = np.zeros(int(rng.uniform(0.2, 1.0) * RATE_HZ), np.float32), own[index]
            at += gap.size
            words.append(Word(clip.label, at + clip.start, at + clip.end))
            parts += [gap, clip.samples]
            at += clip.samples.size
        x = np.concatenate(parts)
        rms = float(np.sqrt(np.mean(np.square(x)))) * augment.decibels(-snr_db)
        x = x + np.float32(rms) * augment.excerpt(rng, kinds[n % len(kinds)], x.size)
        found.append(Scene(speaker, np.clip(x, -1, 1).astype(np.float32), tuple(words)))
    return found


def listened(bundle: Bundle, clips: tuple[Clip, ...]) -> dict[str, Any]:
    """Words found in long recordings, what was heard besides, and false alarms an hour where no command is spoken: in
    noise alone, and in English (a speech, and digits by a voice that was not heard saying them)."""
    hits, words = [], 0
    for scene in long(clips):
        events = bundle.forward(as_int16(scene.samples)).events
        hits.append(detected(events, scene, 1))
        words += len(scene.words)
    silent = noises("test")
    speech = data.folder() / "speech"
    english = [data.read(file, RATE_HZ) for file in sorted(speech.glob("*.flac"))] if speech.is_dir() else []
    english += [np.concatenate(foreign("test", 20))] if foreign("test", 20) else []
    return {
        "words": words,
        "found": sum(h.right for h in hits) / words,
        "wrong_or_extra": sum(h.extra for h in hits) / words,
        "false_alarms_an_hour_noise": _alarms(bundle, list(silent)),
        "false_alarms_an_hour_english": _alarms(bundle, english) if english else None,
    }


def _alarms(bundle: Bundle, recordings: list[Samples]) -> float:
    hours = sum(x.size for x in recordings) / RATE_HZ / 3600
    return float(sum(len(bundle.forward(as_int16(x)).events.label) for x in recordings) / hours)
