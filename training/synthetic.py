"""Synthetic voices as extra speakers, in training only: Debian's espeak-ng and flite, where they are installed.

`python -m training.synthetic` speaks them all once into `runs/` (two minutes); nothing of it is committed or shipped.
HELD_OUT names the voices that no training sees: early stopping listens to them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soxr
from tqdm import tqdm

from training.augment import Samples, trimmed
from training.data import BACKGROUND, DIGITS, LABELS, RUNS, Clip

CACHE = RUNS / "synthetic.npz"
FOREIGN_CACHE = RUNS / "foreign.npz"

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
HELD_OUT_VARIANTS = ("f4", "m5", "linda", "adam", "Andy", "steph2")
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m6", "m7", "m8", "f1", "f2", "f3", "f5", "Alex", "Alicia", "Andrea", "Annie", "Denis"),
    *("Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Mr"),
    *("Nguyen", "Storm", "Tweaky", "anika", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed"),
    *(
        "edward",
        "edward2",
        "grandma",
        "grandpa",
        "gustave",
        "iven",
        "iven2",
        "iven3",
        "iven4",
        "john",
        "kaukovalta",
        "klatt",
    ),
    *("klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "marcelo", "max", "michel", "miguel", "norbert", "pablo"),
    *("paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "steph3", "travis", "victor", "zac"),
)
FLITE = ("slt", "rms", "kal16")
HELD_OUT_FLITE = ("awb",)

# How a speaker of another language may say the ten words, spelt for that language's rules.
SPELT = {
    "de": "siro wann tuh sri for faif six sewwen äit nain",
    "fr": "ziro ouane tou sri faure faïve sixe sévenne eïte naïne",
    "es": "siro uan tu tri for faiv six seven eit nain",
    "it": "ziro uan tu tri for faiv six seven eit nain",
    "pl": "ziro łan tu tri for fajw siks sewen ejt najn",
    "el": "ζίρο ουάν του θρι φορ φάιβ σιξ σέβεν έιτ νάιν",
    "hi": "ज़ीरो वन टू थ्री फ़ोर फ़ाइव सिक्स सेवन एट नाइन",
}

# Words that are no digit and sound like none, so that a synthetic voice alone says nothing of the class.
OTHER = (
    *("hello", "yes", "no", "stop", "go", "left", "right", "up", "down", "on", "off", "cat", "dog", "bird"),
    *("house", "happy", "wow", "water", "music", "people", "about", "computer", "morning", "window"),
    *("yellow", "green", "because", "never", "something", "other", "little", "mountain", "paper", "river"),
    *("table", "under", "winter", "learn", "follow", "visual", "backward", "money", "garden", "question"),
    *("answer", "open", "close", "start", "again", "maybe", "good", "bad", "please", "thanks"),
)

# The same of other languages: words of Arabic, and English ones read out by the rules of another language.
ARABIC = (
    *("صفر", "واحد", "اثنان", "ثلاثة", "أربعة", "خمسة", "ستة", "سبعة", "ثمانية", "تسعة", "يمين", "يسار", "أعلى"),
    *("أسفل", "أمام", "خلف", "نعم", "لا", "توقف", "ابدأ", "تفعيل", "تعطيل", "موافق", "إلغاء", "فتح", "إغلاق"),
    *("تكبير", "تصغير", "السابق", "التالي", "إرسال", "استقبال", "تحريك", "تدوير", "تسجيل", "إدخال", "رقم", "اتجاه"),
    *("خيارات", "تراجع", "مرحبا", "شكرا", "كتاب", "مدينة", "باب", "سيارة", "بيت", "ماء", "شمس", "قمر", "ليل"),
)
FOREIGN = ("fr", "de", "es", "it", "tr", "pt", "ru", "hi", "sv", "nl", "pl", "fa")


@dataclass(frozen=True)
class Voice:
    """One synthetic speaker: a program, its voice's name, pitch (espeak 0..99, flite Hz) and speed (words a minute)."""

    program: str
    name: str
    pitch: int
    speed: int

    @property
    def speaker(self) -> str:
        """A name for splits."""
        return f"{self.program}-{self.name}-{self.pitch}-{self.speed}"


def installed() -> tuple[str, ...]:
    """Which of the two programs are on the PATH."""
    return tuple(name for name in ("espeak-ng", "flite") if shutil.which(name))


def say(voice: Voice, text: str) -> Samples:
    """One utterance, `[N]` float32 at 8 kHz, trimmed of the silence around it."""
    if voice.program == "espeak-ng":
        command = ["espeak-ng", "-v", voice.name, "-p", str(voice.pitch), "-s", str(voice.speed), "--stdout", text]
    else:
        stretch = str(round(150 / voice.speed, 3))
        command = ["flite", "-voice", voice.name, "--setf", f"int_f0_target_mean={voice.pitch}"]
        command += ["--setf", f"duration_stretch={stretch}", "-t", text, "-o", "/dev/stdout"]
    spoken = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    header = spoken.index(b"data") + 8
    rate_hz = int.from_bytes(spoken[24:28], "little")
    raw = np.frombuffer(spoken[header : header + (len(spoken) - header) // 2 * 2], "<i2")
    samples = soxr.resample(raw.astype(np.float32) / 32768, rate_hz, 8000).astype(np.float32)
    return trimmed(samples, 38.0)


def voices(seed: int = 11) -> tuple[Voice, ...]:
    """The training's speakers, always the same."""
    rng = np.random.default_rng(seed)
    found = []
    for n, variant in enumerate(VARIANTS * 2):
        accent = ACCENTS[n % len(ACCENTS)] if n % 2 else ACCENTS[n // 2 % 2]
        found.append(Voice("espeak-ng", f"{accent}+{variant}", int(rng.integers(15, 75)), int(rng.integers(115, 215))))
    for n in range(84):
        language = tuple(SPELT)[n % len(SPELT)]
        variant = VARIANTS[int(rng.integers(len(VARIANTS)))]
        found.append(
            Voice("espeak-ng", f"{language}+{variant}", int(rng.integers(15, 70)), int(rng.integers(115, 200)))
        )
    for name in FLITE:
        for _ in range(14):
            mean = {"slt": 175, "rms": 105, "kal16": 110}[name]
            found.append(Voice("flite", name, int(mean * rng.uniform(0.75, 1.35)), int(rng.integers(110, 210))))
    return tuple(found)


def held_out() -> tuple[Voice, ...]:
    """Speakers that no training sees."""
    accents = ("en-us", "en-gb", "en-gb-x-rp", "en-us", "en-gb", "en-us")
    pairs = zip(accents, HELD_OUT_VARIANTS, strict=True)
    found = [Voice("espeak-ng", f"{a}+{v}", 40 + 5 * n, 140 + 8 * n) for n, (a, v) in enumerate(pairs)]
    return (*found, *(Voice("flite", name, 120, 150) for name in HELD_OUT_FLITE))


def _texts(voice: Voice, rng: np.random.Generator) -> Iterator[tuple[str, int]]:
    language = voice.name.split("+")[0]
    words = SPELT[language].split() if language in SPELT else DIGITS
    yield from ((text, label) for label, text in enumerate(words))
    if language not in SPELT:
        for text in rng.choice(OTHER, 8, replace=False):
            yield str(text), LABELS.index(BACKGROUND)


def speak(jobs: list[tuple[Voice, str, int]]) -> tuple[Clip, ...]:
    """(voice, text, label) each to a clip; what is too short to be a word is left out."""
    found = []
    for voice, text, label in tqdm(jobs, desc="synthetic voices", unit="word", mininterval=5):
        clip = Clip(say(voice, text), label, voice.speaker)
        if clip.samples.size > 800:
            found.append(clip)
    return tuple(found)


def digits_and_others(chosen: tuple[Voice, ...], seed: int = 12) -> list[tuple[Voice, str, int]]:
    """Ten digits by every voice, and a few other words."""
    rng = np.random.default_rng(seed)
    return [(voice, text, label) for voice in chosen for text, label in _texts(voice, rng)]


def abroad(seed: int = 13) -> list[tuple[Voice, str, int]]:
    """Words of other languages, by voices that speak no digits here."""
    rng = np.random.default_rng(seed)
    background = LABELS.index(BACKGROUND)
    jobs = []
    for n in range(150):
        language, words = ("ar", ARABIC) if n < 90 else (FOREIGN[n % len(FOREIGN)], OTHER)
        name = f"{language}+{VARIANTS[int(rng.integers(len(VARIANTS)))]}"
        voice = Voice("espeak-ng", name, int(rng.integers(10, 85)), int(rng.integers(110, 210)))
        jobs += [(voice, str(text), background) for text in rng.choice(words, 18, replace=False)]
    return jobs


@cache
def clips() -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """(training, held out) synthetic clips, from the cache or spoken now; both empty where neither program is found."""
    if not CACHE.is_file():
        programs = installed()
        if len(programs) < 2:
            print(f"synthetic voices: espeak-ng and flite are wanted, found {programs or 'neither'}; going on without")
            return (), ()
        _store(CACHE, speak(digits_and_others(voices())), speak(digits_and_others(held_out())))
    return _stored(CACHE)


@cache
def foreign() -> tuple[Clip, ...]:
    """Words of other languages; none where espeak-ng is not found."""
    if not FOREIGN_CACHE.is_file():
        if "espeak-ng" not in installed():
            return ()
        _store(FOREIGN_CACHE, speak(abroad()), ())
    return _stored(FOREIGN_CACHE)[0]


def _store(path: Path, learned: tuple[Clip, ...], kept: tuple[Clip, ...]) -> None:
    every = (*learned, *kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        samples=np.concatenate([np.rint(clip.samples.clip(-1, 0.9999) * 32768).astype(np.int16) for clip in every]),
        length=np.array([clip.samples.size for clip in every]),
        label=np.array([clip.label for clip in every]),
        speaker=np.array([clip.speaker for clip in every]),
        held_out=np.arange(len(every)) >= len(learned),
    )


def _stored(path: Path) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    stored = np.load(path)
    ends = np.cumsum(stored["length"])
    whole = stored["samples"].astype(np.float32) / 32768
    columns = (stored["held_out"], ends, stored["length"], stored["label"], stored["speaker"])
    found = [
        (bool(out), Clip(whole[end - length : end], int(label), str(speaker)))
        for out, end, length, label, speaker in zip(*columns, strict=True)
    ]
    return tuple(c for out, c in found if not out), tuple(c for out, c in found if out)


if __name__ == "__main__":
    learned, kept = clips()
    print(f"{len(learned)} clips to learn from, {len(kept)} held out, in {CACHE}; {len(foreign())} of other languages")
