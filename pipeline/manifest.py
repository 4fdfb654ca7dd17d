"""The bundle's typed manifest: all that training tells the runtime, in one ONNX metadata entry.

A bundle is one `.onnx` file whose `metadata_props` carry this manifest as JSON under `METADATA_KEY`.
Nothing else travels with a model: no side file, no convention about names.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import ManifestError

METADATA_KEY = "statebelt.manifest"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # JSON has no NaN: null came back


class InputSpec(_Part):
    """What a topic must carry for this bundle: `[N, channels]` samples at `sample_rate_hz`."""

    sample_rate_hz: float = Field(gt=0, le=1e6)
    channels: int = Field(default=1, ge=1, le=65_536)
    sample_type: Literal["int16", "float32"] = "int16"


class PowerFrontend(_Part):
    """Samples to power spectra; int16 is scaled by 1/32768 first (`pipeline/frontend/power.py`)."""

    kind: Literal["power"] = "power"
    window_samples: int = Field(ge=2, le=65_536)
    hop_samples: int = Field(ge=1, le=65_536)

    @model_validator(mode="after")
    def _hop_within_window(self) -> PowerFrontend:
        if self.hop_samples > self.window_samples:
            raise ValueError(
                f"hop_samples {self.hop_samples} exceeds window_samples {self.window_samples}: "
                "samples between two windows would be lost; make the hop at most the window"
            )
        return self


class IdentityFrontend(_Part):
    """Frames are the samples: sensor vectors, or frames that the producer computed."""

    kind: Literal["identity"] = "identity"


FrontendSpec = Annotated[PowerFrontend | IdentityFrontend, Field(discriminator="kind")]


class StateSpec(_Part):
    """One carried tensor: `shape` is the graph's, with the batch at `batch_axis` written as 1."""

    input: str
    output: str
    shape: tuple[int, ...] = Field(max_length=8)
    batch_axis: int = Field(ge=0)
    dtype: Literal["float32", "float16", "float64", "int64", "int32"] = "float32"
    initial: float = 0.0

    @model_validator(mode="after")
    def _batch_is_one(self) -> StateSpec:
        if self.batch_axis >= len(self.shape) or self.shape[self.batch_axis] != 1:
            raise ValueError(
                f"state {self.input!r}: shape {list(self.shape)} must hold 1 at batch_axis {self.batch_axis}"
            )
        if min(self.shape) < 1 or math.prod(self.shape) > 2**26:
            raise ValueError(f"state {self.input!r}: shape {list(self.shape)} is absurd (at most 2**26 values)")
        return self

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape one stream carries, without the batch axis."""
        return self.shape[: self.batch_axis] + self.shape[self.batch_axis + 1 :]


class ModelSpec(_Part):
    """Names and axes of the graph's own input and output, `[B, T, F]` and `[B, T, C]`, and its states.

    block: frames one step consumes. latency: frames by which step trails forward.
    tail_frames: frames of silence (zeros) fed at the end of a stream, so that what the end cut off is decided.
    """

    input: str
    output: str
    features: int = Field(ge=1)
    classes: int = Field(ge=1)
    states: tuple[StateSpec, ...] = Field(min_length=1, max_length=256)
    block: int = Field(default=1, ge=1, le=65_536)
    latency: int = Field(default=0, ge=0, le=65_536)
    tail_frames: int = Field(default=0, ge=0, le=65_536)

    @model_validator(mode="after")
    def _names_once(self) -> ModelSpec:
        names = [self.input, *(s.input for s in self.states)]
        outputs = [self.output, *(s.output for s in self.states)]
        for kind, given in (("input", names), ("output", outputs)):
            if len(set(given)) != len(given):
                raise ValueError(f"an {kind} name stands twice in {given}")
        return self


class KeywordsHead(_Part):
    """Frame probabilities to words (`pipeline/head/keywords.py`).

    background: the label that is no word. smooth_frames: length of the causal moving average.
    threshold: smoothed probability of any word at which one counts. release: below it for `hold_frames` frames in a
    row the word is over. refractory_frames: after a word, frames in which none can begin. lead_frames,
    trail_frames: by how much start and end are moved back, to make up for what smoothing and the model delay them.
    final_threshold: a stream of at most `final_frames` that yielded nothing is a single utterance: at its end its best
    word is published all the same if it reached this (None: `threshold`), with its own low score.
    """

    kind: Literal["keywords"] = "keywords"
    background: str
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


class ScoresHead(_Part):
    """Every frame's scores are the result, as they are."""

    kind: Literal["scores"] = "scores"


HeadSpec = Annotated[KeywordsHead | ScoresHead, Field(discriminator="kind")]


class Provenance(_Part):
    """Where a bundle comes from and how good it was measured to be."""

    recipe: str
    commit: str
    data_sha256: str
    created: str
    scores: dict[str, float] = {}
    note: str = ""


class Manifest(_Part):
    """Everything the runtime knows of a model. Frozen; unknown keys are refused."""

    version: Literal[1] = 1
    task: str
    labels: tuple[str, ...] = Field(min_length=1)
    licence: str
    provenance: Provenance
    input: InputSpec
    frontend: FrontendSpec
    model: ModelSpec
    head: HeadSpec

    @model_validator(mode="after")
    def _parts_fit(self) -> Manifest:
        if len(self.labels) != self.model.classes:
            raise ValueError(f"{len(self.labels)} labels for a model of {self.model.classes} classes")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        if isinstance(self.frontend, PowerFrontend):
            bins = self.frontend.window_samples // 2 + 1
            if self.input.channels != 1:
                raise ValueError(f"the power frontend takes 1 channel, the input has {self.input.channels}")
        else:
            bins = self.input.channels
        if bins != self.model.features:
            raise ValueError(f"the frontend makes frames of {bins}, the model takes {self.model.features}")
        if isinstance(self.head, KeywordsHead) and self.head.background not in self.labels:
            raise ValueError(f"background {self.head.background!r} is not among the labels {list(self.labels)}")
        return self

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return self.frontend.hop_samples if isinstance(self.frontend, PowerFrontend) else 1

    @property
    def frame_rate_hz(self) -> float:
        """Frames in a second."""
        return self.input.sample_rate_hz / self.hop_samples

    def to_json(self) -> str:
        """The text that `METADATA_KEY` holds."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str, source: str = "manifest") -> Manifest:
        """Parse and check. Raises ManifestError that names every field at fault."""
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            raise ManifestError(f"{source}: {_sentence(error)}") from None


def _sentence(error: pydantic.ValidationError) -> str:
    def one(item: Any) -> str:
        where = ".".join(str(part) for part in item["loc"]) or "manifest"
        return f"{where}: {item['msg']} (got {str(item['input'])[:80]!r})"

    return "the manifest does not hold together: " + "; ".join(one(item) for item in error.errors())
