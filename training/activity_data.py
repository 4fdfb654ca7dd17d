"""HAPT: phones on the waist, 50 Hz, whole recordings of people who stand, sit, lie, walk and change between these.

Smartphone-Based Recognition of Human Activities and Postural Transitions (UCI 341; Reyes-Ortiz et al., 2015), the 21
subjects of the corpus's training half, two recordings each: acceleration in g and rotation in rad/s, and a label a
sample, 0 where there is none. Split by subject, never by window.

All recordings follow one script (stand, sit, lie, walk, stairs, in this order), and a model that remembers could learn
the script. So training composes streams of pieces: each begins anywhere in a recording and ends long before its end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from training import data

RATE_HZ = 50.0
CHANNELS = 6
POSTURES = 6
"""The first six labels are postures and gaits, the others the transitions between postures."""
UNKNOWN = -1
FOLDS = ("fold-1", "fold-2", "fold-3", "fold-4", "fold-5")

Samples = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Recording:
    """samples `[N, 6]`: acceleration x, y, z in g, rotation x, y, z in rad/s. labels `[N]`: indices into `labels()`,
    UNKNOWN where nothing was noted."""

    name: str
    subject: int
    samples: Samples
    labels: Labels


@cache
def labels() -> tuple[str, ...]:
    """The twelve, in the corpus's order."""
    told = json.loads((data.corpus("activity") / "activity.json").read_text())["labels"]
    return tuple(told[str(n)] for n in range(1, len(told)))


@cache
def recordings() -> tuple[Recording, ...]:
    """All, in order of their names."""
    found = []
    for file in sorted(data.corpus("activity").glob("exp*_user*.npz")):
        with np.load(file) as archive:
            samples, label = archive["imu"].astype(np.float32), archive["label"].astype(np.int64) - 1
        found.append(Recording(file.stem, int(file.stem[-2:]), samples, label))
    return tuple(found)


def split(fold: str) -> tuple[tuple[Recording, ...], tuple[Recording, ...]]:
    """(recordings of the subjects to learn from, of those left out); the fifth of the subjects that a fold names.

    With "" nobody is left out: the second are then those of the first fold, and learnt from as well.
    """
    if fold and fold not in FOLDS:
        raise ConfigError(f"activity has no fold {fold!r}; there are {', '.join(FOLDS)}")
    subjects = sorted({one.subject for one in recordings()})
    out = set(subjects[FOLDS.index(fold or FOLDS[0]) :: len(FOLDS)])
    rest = tuple(one for one in recordings() if one.subject in out)
    return tuple(one for one in recordings() if one.subject not in out or not fold), rest


def windows(label: Labels, length: int = 128) -> list[tuple[int, int]]:
    """(first sample, label) of the windows by which this corpus is judged: `length` samples, half overlapping, each
    within one stretch of one posture or gait."""
    edges = np.flatnonzero(np.diff(label, prepend=-2, append=-2)).tolist()
    found = []
    for begin, end in pairwise(edges):
        if 0 <= label[begin] < POSTURES:
            found += [(at, int(label[begin])) for at in range(begin, end - length + 1, length // 2)]
    return found


def otherwise(one: Samples, label: Labels, rng: np.random.Generator, turn_degrees: float) -> tuple[Samples, Labels]:
    """The same movement by another body with another phone: turned, stronger or weaker, faster or slower, noisier."""
    axis = rng.standard_normal(3)
    axis /= np.linalg.norm(axis)
    angle = np.deg2rad(rng.normal() * turn_degrees)
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turned = (np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k).astype(np.float32).T  # Rodrigues
    gain = np.float32(rng.normal(1, 0.05)), np.float32(rng.normal(1, 0.1))
    x = np.concatenate([one[:, :3] @ turned * gain[0], one[:, 3:] @ turned * gain[1]], axis=1)
    at = np.arange(0, len(x) - 1, np.exp(rng.normal() * 0.1))
    before, share = at.astype(int), (at % 1)[:, None].astype(np.float32)
    x = x[before] * (1 - share) + x[before + 1] * share
    x += np.float32(0.02 * rng.random()) * rng.standard_normal(x.shape, dtype=np.float32)
    return x, label[np.rint(at).astype(int)]
