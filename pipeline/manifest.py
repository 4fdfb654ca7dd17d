"""The bundle's typed manifest: all that training tells the runtime, in one ONNX metadata entry.

A bundle is one `.onnx` file whose `metadata_props` carry this manifest as JSON under `METADATA_KEY`.
Nothing else travels with a model: no side file, no convention about names.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

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


class _Windowed(_Part):
    window_samples: int = Field(ge=2, le=65_536)
    hop_samples: int = Field(ge=1, le=65_536)

    @model_validator(mode="after")
    def _hop_within_window(self) -> Self:
        if self.hop_samples > self.window_samples:
            raise ValueError(
                f"hop_samples {self.hop_samples} exceeds window_samples {self.window_samples}: "
                "samples between two windows would be lost; make the hop at most the window"
            )
        return self


class PowerFrontend(_Windowed):
    """Samples to power spectra; int16 is scaled by 1/32768 first (`pipeline/frontend/power.py`)."""

    kind: Literal["power"] = "power"


class IdentityFrontend(_Part):
    """Frames are the samples: sensor vectors, or frames that the producer computed."""

    kind: Literal["identity"] = "identity"


class WindowFrontend(_Windowed):
    """Frames are windows of raw samples: `hop_samples` new ones behind the last of the window before (zeros at the
    beginning). int16 is scaled by 1/32768 first (`pipeline/frontend/window.py`)."""

    kind: Literal["window"] = "window"


FrontendSpec = Annotated[PowerFrontend | IdentityFrontend | WindowFrontend, Field(discriminator="kind")]


class _PerStream(_Part):
    """A tensor of which each stream has its own: `shape` is the graph's, the batch at `batch_axis` written as 1."""

    input: Name
    shape: tuple[int, ...] = Field(max_length=8)
    batch_axis: int = Field(ge=0)
    initial: float = 0.0

    @model_validator(mode="after")
    def _batch_is_one(self) -> Self:
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


class StateSpec(_PerStream):
    """One carried tensor: the graph's input of one step is its output of the step before."""

    output: Name
    dtype: Literal["float32", "float16", "float64", "int64", "int32"] = "float32"

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


class GivenSpec(_PerStream):
    """An input that a producer gives once, with a stream's first chunk (a speaker's embedding): float32. A stream to
    which nobody gave it runs with `initial`."""


class ConstantSpec(_Part):
    """An input that is the same in every call, for every stream: a sample rate, say. `shape` [] is a scalar."""

    input: Name
    value: float
    shape: tuple[int, ...] = Field(default=(), max_length=8)
    dtype: Literal["float32", "float16", "float64", "int64", "int32", "bool"] = "float32"

    @model_validator(mode="after")
    def _fits(self) -> ConstantSpec:
        if math.prod(self.shape) > 2**20 or min(self.shape, default=1) < 1:
            raise ValueError(f"constant {self.input!r}: shape {list(self.shape)} is absurd (at most 2**20 values)")
        whole = self.dtype in ("int32", "int64", "bool")
        if abs(self.value) > _LARGEST.get(self.dtype, math.inf) or (whole and not self.value.is_integer()):
            raise ValueError(f"constant {self.input!r}: {self.value} is no {self.dtype}")
        return self


class ModelSpec(_Part):
    """Names and axes of the graph's own input and output, and its states.

    input_axes: of B (streams), T (frames), F (features) and 1, in the graph's order: `BTF`, `BF` (a frame a call), `TF`
        (a stream a call), `BFT`, `B1F`. output_axes: likewise with C (classes); without C there is one.
    one_stream: a call takes exactly one stream; so it is where B is missing. one_block: a call takes exactly one block;
        so it is where T is missing.
    also: more outputs, with the output's axes but for C; their columns come behind the scores.
    block: frames one step consumes. latency: frames by which step trails forward.
    tail_frames: frames of silence (zeros) fed at the end of a stream, so that what the end cut off is decided.
    tolerance: largest difference of a score between two cuts or batches; 0: none, to the last bit. For models that are
        not exact (dynamic quantisation scales anew in each call), measured by `statebelt verify`.
    """

    input: Name
    output: Name
    features: int = Field(ge=1, le=2**20)
    classes: int = Field(ge=1, le=65_536)
    states: tuple[StateSpec, ...] = Field(min_length=1, max_length=256)
    input_axes: str = Field(default="BTF", pattern="^[BTF1]*$", max_length=8)
    output_axes: str = Field(default="BTC", pattern="^[BTC1]*$", max_length=8)
    one_stream: bool = False
    one_block: bool = False
    also: tuple[Name, ...] = Field(default=(), max_length=64)
    constants: tuple[ConstantSpec, ...] = Field(default=(), max_length=64)
    given: tuple[GivenSpec, ...] = Field(default=(), max_length=16)
    tolerance: float = Field(default=0.0, ge=0)
    block: int = Field(default=1, ge=1, le=65_536)
    latency: int = Field(default=0, ge=0, le=65_536)
    tail_frames: int = Field(default=0, ge=0, le=65_536)

    @model_validator(mode="after")
    def _names_once(self) -> ModelSpec:
        names = [self.input, *(s.input for s in self.states), *(s.input for s in self.constants)]
        names += [s.input for s in self.given]
        outputs = [self.output, *self.also, *(s.output for s in self.states)]
        for kind, given in (("input", names), ("output", outputs)):
            if len(set(given)) != len(given):
                raise ValueError(f"an {kind} name stands twice in {given}")
        return self

    @model_validator(mode="after")
    def _axes_once(self) -> ModelSpec:
        for name, axes in (("input_axes", self.input_axes), ("output_axes", self.output_axes)):
            letters = axes.replace("1", "")
            if len(set(letters)) != len(letters) or (name == "input_axes" and "F" not in letters):
                raise ValueError(f"{name} {axes!r}: each of its letters once, and F among the input's")
        if ("B" in self.input_axes) != ("B" in self.output_axes) and not self.one_stream:
            raise ValueError(f"B is in one of {self.input_axes!r} and {self.output_axes!r} only: say one_stream")
        return self

    @property
    def streams_a_call(self) -> int | None:
        """1, or None: any."""
        return 1 if self.one_stream or "B" not in self.input_axes else None

    @property
    def blocks_a_call(self) -> int | None:
        """1, or None: any."""
        return 1 if self.one_block or "T" not in self.input_axes else None

    @property
    def given_bytes(self) -> int:
        """What a producer gives with a stream's first chunk: all `given` in order, float32, little-endian."""
        return sum(4 * math.prod(spec.shape) for spec in self.given)

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


class SegmentsHead(_Part):
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


class OverlapAddHead(_Part):
    """Windows of samples to one signal (`pipeline/head/overlap_add.py`): each frame's scores are a window that begins
    `hop_samples` after the one before; where they overlap they are added. The hop is the frontend's."""

    kind: Literal["overlap_add"] = "overlap_add"


HeadSpec = Annotated[KeywordsHead | ScoresHead | SegmentsHead | OverlapAddHead, Field(discriminator="kind")]


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
        elif isinstance(self.frontend, WindowFrontend):
            bins = self.frontend.window_samples * self.input.channels
        else:
            bins = self.input.channels
        if bins != self.model.features:
            raise ValueError(f"the frontend makes frames of {bins}, the model takes {self.model.features}")
        if isinstance(self.head, SegmentsHead) and self.head.column >= self.model.classes:
            raise ValueError(f"column {self.head.column} of {self.model.classes} classes")
        if isinstance(self.head, OverlapAddHead) and (
            not isinstance(self.frontend, WindowFrontend) or self.model.classes != self.frontend.window_samples
        ):
            raise ValueError(
                "overlap_add takes a window frontend, and as many scores a frame as its window has samples; got "
                f"frontend {self.frontend.kind} and {self.model.classes} classes"
            )
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
        window = 0 if isinstance(frontend, IdentityFrontend) else frontend.window_samples
        samples = (self.hop_samples * self.model.block + window) * self.input.channels
        kept = self.model.classes * (head.smooth_frames if isinstance(head, KeywordsHead) else 1)
        states = sum(state.row_bytes for state in self.model.states) + self.model.given_bytes
        return states + 4 * (samples + kept)

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return 1 if isinstance(self.frontend, IdentityFrontend) else self.frontend.hop_samples

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
