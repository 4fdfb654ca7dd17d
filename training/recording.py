"""Make the demo's recording: digits by several synthetic voices, with the truth beside it.

    python -m training.recording      pipeline/recordings/digits.flac and digits.json (espeak-ng and flite needed)

The voices are among those of training: the demo shows the path from a word to a result, and fails where the path does.
How well the model knows a voice that it never heard is what `training.evaluate` tells.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import typer

from training import augment, data, synthetic
from training.data import DIGITS

SEED = 4
VOICES = (
    synthetic.Voice("flite", "slt", 193, 165),
    synthetic.Voice("espeak-ng", "en-us+m1", 23, 127),
    synthetic.Voice("flite", "kal16", 107, 141),
    synthetic.Voice("espeak-ng", "en-gb+f5", 67, 151),
    synthetic.Voice("flite", "rms", 128, 134),
    synthetic.Voice("espeak-ng", "en-gb-x-rp+benjamin", 29, 129),
)


def speak(seed: int = SEED) -> tuple[augment.Samples, list[dict[str, float | str]]]:
    """`[N]` at 8 kHz, and for every word its name, start and end in seconds."""
    rng = np.random.default_rng(seed)
    order = [*rng.permutation(10), *rng.permutation(10)[:2]]
    parts: list[augment.Samples] = [np.zeros(int(0.5 * 8000), np.float32)]
    words: list[dict[str, float | str]] = []
    for n, label in enumerate(order):
        voice = VOICES[n % len(VOICES)]
        clip = augment.level(synthetic.say(voice, DIGITS[label]), -22.0 + float(rng.uniform(-3, 3)))
        start = sum(part.size for part in parts)
        words.append(
            {
                "word": DIGITS[label],
                "start_s": round(start / 8000, 3),
                "end_s": round((start + clip.size) / 8000, 3),
                "voice": voice.name,
            }
        )
        parts += [clip, np.zeros(int(rng.uniform(0.4, 0.9) * 8000), np.float32)]
    x = np.concatenate(parts)
    room = augment.coloured(rng, x.size, 1.0) * np.float32(augment.decibels(-60.0))
    return np.clip(x + room, -1, 0.9999).astype(np.float32), words


def main(
    output: Annotated[Path, typer.Option(help="The recording; the truth goes beside it.")] = data.ROOT
    / "pipeline/recordings/digits.flac",
) -> None:
    """Make the demo's recording."""
    if len(synthetic.installed()) < 2:
        sys.exit("espeak-ng and flite are needed: apt-get install espeak-ng flite")
    samples, words = speak()
    output.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(output, samples, 8000, subtype="PCM_16")
    output.with_suffix(".json").write_text(json.dumps({"words": words}, indent=1) + "\n")
    print(f"{output}: {samples.size / 8000:.1f} s, {len(words)} words")


if __name__ == "__main__":
    typer.run(main)
