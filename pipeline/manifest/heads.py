"""What is made of scores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.manifest.part import Name, Part


class KeywordsHead(Part):
    """Frame probabilities to words (`pipeline/head/keywords.py`).

    background: the label that is no word. smooth_frames: length of the causal moving average.
    threshold: smoothed probability of any word at which one counts. release: below it for `hold_frames` frames in a
    row the word is over. refractory_frames: after a word, frames in which none can begin. lead_frames,
    trail_frames: by how much start and end are moved back, to make up for what smoothing and the model delay them.
    final_threshold: a stream of at most `final_frames` that yielded nothing is a single utterance: at its end its best
    word is published all the same if it reached this (None: `threshold`), with its own low score.
    """

    kind: Literal["keywords"] = "keywords"
    background: Name
    smooth_frames: int = Field(default=8, ge=1, le=1000)
    threshold: float = Field(default=0.5, gt=0, le=1)
    release: float = Field(default=0.25, gt=0, le=1)
    hold_frames: int = Field(default=8, ge=1, le=10_000)
    refractory_frames: int = Field(default=0, ge=0, le=10_000)
    lead_frames: int = Field(default=0, ge=0, le=10_000)
    trail_frames: int = Field(default=0, ge=0, le=10_000)
    final_threshold: float | None = Field(default=None, gt=0, le=1)
    final_frames: int = Field(default=0, ge=0, le=10_000)

    @property
    def low(self) -> float:
        """The probability from which on a word is followed at all."""
        return self.threshold if self.final_threshold is None else self.final_threshold

    @model_validator(mode="after")
    def _ordered(self) -> KeywordsHead:
        if max(self.release, self.low) > self.threshold:
            raise ValueError(
                f"release {self.release} and final_threshold {self.final_threshold} must not exceed "
                f"threshold {self.threshold}"
            )
        return self


class ScoresHead(Part):
    """Every frame's scores are the result, as they are."""

    kind: Literal["scores"] = "scores"


class SegmentsHead(Part):
    """A score to segments, as in voice activity detection (`pipeline/head/segments.py`).

    label: of the segments; with `starts`, an event `<label>_start` is published as soon as one has begun.
    column: of the scores. logit: the scores are logits: a sigmoid is taken first.
    threshold: from which on a frame is speech. negative_threshold: below which it is silence; between, nothing changes.
    min_silence_samples: of silence that end a segment. min_speech_samples: a segment shorter than that is none.
    pad_samples: added on both sides.
    """

    kind: Literal["segments"] = "segments"
    label: Name = "speech"
    starts: bool = True
    column: int = Field(default=0, ge=0, le=65_535)
    logit: bool = False
    threshold: float = Field(default=0.5, gt=0, lt=1)
    negative_threshold: float = Field(default=0.35, gt=0, lt=1)
    min_speech_samples: int = Field(default=0, ge=0, le=10**9)
    min_silence_samples: int = Field(default=0, ge=0, le=10**9)
    pad_samples: int = Field(default=0, ge=0, le=10**9)

    @model_validator(mode="after")
    def _ordered(self) -> SegmentsHead:
        if self.negative_threshold > self.threshold:
            raise ValueError(f"negative_threshold {self.negative_threshold} exceeds threshold {self.threshold}")
        return self


class OverlapAddHead(Part):
    """Windows of samples to one signal (`pipeline/head/overlap_add.py`): each frame's scores are a window that begins
    `hop_samples` after the one before; where they overlap they are added. The hop is the frontend's."""

    kind: Literal["overlap_add"] = "overlap_add"


class ActivityHead(Part):
    """Frame probabilities to stretches of one label, end to end (`pipeline/head/activity.py`).

    hold_frames: for which another label must be the likeliest before it is believed.
    """

    kind: Literal["activity"] = "activity"
    hold_frames: int = Field(default=1, ge=1, le=10**6)


class ForecastHead(Part):
    """Scores that are the next values of some series (`pipeline/head/forecast.py`).

    series: their names, in the order of a step's values. horizon: steps ahead, the next one first.
    every_frames: a forecast is published every so many frames. context_frames: before so many have been seen, forecasts
    know less than the model asks for: their events say how much.
    """

    kind: Literal["forecast"] = "forecast"
    series: tuple[Name, ...] = Field(min_length=1, max_length=65_536)
    horizon: int = Field(ge=1, le=65_536)
    every_frames: int = Field(default=1, ge=1, le=10**6)
    context_frames: int = Field(default=1, ge=1, le=10**9)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the scores' columns: `<series>+<step>`."""
        return tuple(f"{name}+{step}" for step in range(1, self.horizon + 1) for name in self.series)

    def tells(self, labels: tuple[str, ...]) -> bool:
        """Whether these are its labels (as many as a file may say are never built in memory)."""
        return len(self.series) * self.horizon == len(labels) and self.labels == labels


class AnomalyHead(Part):
    """A score in 0..1 to stretches out of the ordinary, with a running threshold (`pipeline/head/anomaly.py`).

    label: of the stretches; with `starts`, an event `<label>_start` is published with the first frame of each.
    column: of the scores. threshold: below it nothing is anomalous, whatever the stream is like.
    rise: nor is what stays below so many times the stream's own level, what its highest scores were; 0: `threshold`
    decides alone. memory_frames: that the level looks back. learn_frames: the level is learnt in the stream's first so
    many frames alone, and nothing is told in them; 0: it goes on being learnt, and there is no such time.
    hold_frames: an anomaly is over once so many frames in a row are none.
    """

    kind: Literal["anomaly"] = "anomaly"
    label: Name = "anomaly"
    starts: bool = True
    column: int = Field(default=0, ge=0, le=65_535)
    threshold: float = Field(default=0.5, gt=0, le=1)
    rise: float = Field(default=0.0, ge=0, le=1000)
    memory_frames: int = Field(default=4096, ge=1, le=10**9)
    learn_frames: int = Field(default=0, ge=0, le=10**9)
    hold_frames: int = Field(default=1, ge=1, le=10**9)


HeadSpec = Annotated[
    KeywordsHead | ScoresHead | SegmentsHead | OverlapAddHead | ActivityHead | ForecastHead | AnomalyHead,
    Field(discriminator="kind"),
]
