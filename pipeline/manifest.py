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

MAX_MANIFEST_BYTES = 1 << 20
"""Of the manifest's JSON."""

MAX_ROW_BYTES = 64 << 20
"""What one stream may carry from chunk to chunk, and what one block of it may take in memory."""

_MAX_TOLD = 5  # faults named in one message
_ITEM_BYTES = {"float32": 4, "float16": 2, "float64": 8, "int64": 8, "int32": 4}
_LARGEST = {"float16": 65_504.0, "float32": 3.402_823_466_385_288_6e38, "int64": 2.0**53, "int32": 2.0**31 - 1}

Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=2_000)]


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

    input: Name
    output: Name
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

    @model_validator(mode="after")
    def _initial_fits(self) -> StateSpec:
        whole = self.dtype in ("int32", "int64")
        if abs(self.initial) > _LARGEST.get(self.dtype, math.inf) or (whole and not self.initial.is_integer()):
            raise ValueError(f"state {self.input!r}: initial {self.initial} is no {self.dtype}")
        return self

    @property
    def row_bytes(self) -> int:
        """What one stream carries of it."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape one stream carries, without the batch axis."""
        return self.shape[: self.batch_axis] + self.shape[self.batch_axis + 1 :]


class ModelSpec(_Part):
    """Names and axes of the graph's own input and output, `[B, T, F]` and `[B, T, C]`, and its states.

    block: frames one step consumes. latency: frames by which step trails forward.
    tail_frames: frames of silence (zeros) fed at the end of a stream, so that what the end cut off is decided.
    """

    input: Name
    output: Name
    features: int = Field(ge=1, le=2**20)
    classes: int = Field(ge=1, le=65_536)
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

    @model_validator(mode="after")
    def _fits_in_memory(self) -> ModelSpec:
        frames = max(self.block, self.tail_frames + self.latency)
        size = 4 * frames * max(self.features, self.classes)
        if size > MAX_ROW_BYTES:
            raise ValueError(
                f"{frames} frames at a time (block, or latency and tail_frames) of {self.features} features and "
                f"{self.classes} classes take {size} bytes a stream; at most {MAX_ROW_BYTES}: make them smaller"
            )
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


class ScoresHead(_Part):
    """Every frame's scores are the result, as they are."""

    kind: Literal["scores"] = "scores"


HeadSpec = Annotated[KeywordsHead | ScoresHead, Field(discriminator="kind")]


class Provenance(_Part):
    """Where a bundle comes from and how good it was measured to be."""

    recipe: Text
    commit: Name
    data_sha256: Name
    created: Name
    scores: dict[Name, float] = Field(default={}, max_length=1000)
    note: Text = ""


class Manifest(_Part):
    """Everything the runtime knows of a model. Frozen; unknown keys are refused."""

    version: Literal[1] = 1
    task: Text
    labels: tuple[Name, ...] = Field(min_length=1, max_length=65_536)
    licence: Text
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
        if self.carried_bytes > MAX_ROW_BYTES:
            raise ValueError(
                f"a stream would carry {self.carried_bytes} bytes; at most {MAX_ROW_BYTES}: make states, block, "
                "hop_samples or smooth_frames smaller"
            )
        return self

    @property
    def carried_bytes(self) -> int:
        """About what one stream carries: states, samples of an unfinished block and window, scores to smooth."""
        frontend, head = self.frontend, self.head
        window = frontend.window_samples if isinstance(frontend, PowerFrontend) else 0
        samples = (self.hop_samples * self.model.block + window) * self.input.channels
        smoothed = head.smooth_frames * self.model.classes if isinstance(head, KeywordsHead) else 0
        return sum(state.row_bytes for state in self.model.states) + 4 * (samples + smoothed)

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
        size = len(text.encode(errors="replace"))
        if size > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{source}: a manifest of {size} bytes; at most {MAX_MANIFEST_BYTES}: shorten it")
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            raise ManifestError(f"{source}: {_sentence(error)}") from None


def _sentence(error: pydantic.ValidationError) -> str:
    def one(item: Any) -> str:
        where = ".".join(str(part)[:80] for part in item["loc"]) or "manifest"
        return f"{where}: {item['msg'][:400]} (got {str(item['input'])[:80]!r})"

    faults = error.errors(include_url=False)
    more = f"; and {len(faults) - _MAX_TOLD} more" if len(faults) > _MAX_TOLD else ""
    return "the manifest does not hold together: " + "; ".join(one(item) for item in faults[:_MAX_TOLD]) + more
