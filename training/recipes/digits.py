"""English digits at 8 kHz: a 2 x 128 LSTM on 40 mel bands, one frame every 20 ms.

Cost: about ten minutes on one core (composition of the streams included), 0.9 MB exported.
Expected: 88.75 % of a left-out speaker's takes, from 82 (yweweler) to 94 (george); `training/README.md` has more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

BACKGROUND = "background"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LABELS = (*DIGITS, BACKGROUND)


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


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run; two runs of one recipe on one machine give the same weights."""

    name: str = "digits"
    seed: int = 7
    # samples to frames
    sample_rate_hz: int = 8000
    window_samples: int = 256
    hop_samples: int = 160
    # the model
    mels: int = 40
    cepstra: int = 13
    # words of other speech that are learnt as classes of their own, and served as background
    auxiliary: int = 40
    log_floor: float = 1e-6
    layers: int = 2
    hidden: int = 128
    dropout: float = 0.2
    # the composed streams
    streams: int = 16
    stream_s: float = 5.0
    fresh: float = 0.6
    foreign: float = 0.4  # of the streams: speech without digits only
    stretched: float = 0.5
    # where in a word a decision is due: from this part of its length until so long after its end
    decide_from: float = 0.6
    decide_after_frames: int = 6
    fade_frames: int = 4
    # the descent
    passes: int = 150
    batches: int = 32
    segment_frames: int = 50
    learning_rate: float = 4e-3
    weight_decay: float = 1e-3
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    word_weight: float = 2.0
    average: float = 0.9995
    patience_passes: int = 1000  # never: held-out synthetic voices follow real speakers poorly
    head: Head = Head()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`."""
        return cls(**{**values, "head": Head(**values["head"])})


RECIPE = Recipe()
