"""The bundle's typed manifest: all that training tells the runtime, in one ONNX metadata entry.

A bundle is one `.onnx` file whose `metadata_props` carry this manifest as JSON under `METADATA_KEY`.
Nothing else travels with a model: no side file, no convention about names.
"""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import Field, model_validator

from pipeline.errors import ManifestError
from pipeline.manifest.heads import (
    ActivityHead,
    AnomalyHead,
    ForecastHead,
    HeadSpec,
    KeywordsHead,
    OverlapAddHead,
    ScoresHead,
    SegmentsHead,
)
from pipeline.manifest.model import ConstantSpec, GivenSpec, ModelSpec, StateSpec
from pipeline.manifest.part import MAX_ROW_BYTES, Name, Part, Text
from pipeline.manifest.signal import FrontendSpec, IdentityFrontend, InputSpec, PowerFrontend, WindowFrontend

__all__ = [
    "METADATA_KEY",
    "ActivityHead",
    "AnomalyHead",
    "ConstantSpec",
    "ForecastHead",
    "FrontendSpec",
    "GivenSpec",
    "HeadSpec",
    "IdentityFrontend",
    "InputSpec",
    "KeywordsHead",
    "Manifest",
    "ModelSpec",
    "OverlapAddHead",
    "PowerFrontend",
    "Provenance",
    "ScoresHead",
    "SegmentsHead",
    "StateSpec",
    "WindowFrontend",
]

METADATA_KEY = "statebelt.manifest"

MAX_MANIFEST_BYTES = 1 << 20
"""Of the manifest's JSON."""

_HEAD_VALUES = 6  # about what other heads carry for each class
_MAX_TOLD = 5  # faults named in one message


class Provenance(Part):
    """Where a bundle comes from and how good it was measured to be."""

    recipe: Text
    commit: Name
    data_sha256: Name
    created: Name
    scores: dict[Name, float] = Field(default={}, max_length=1000)
    note: Text = ""


class Manifest(Part):
    """Everything the runtime knows of a model. Frozen; unknown keys are refused."""

    version: Literal[1] = 1
    task: Text
    labels: tuple[Name, ...] = Field(max_length=65_536)  # of the scores' columns; none where those are samples
    licence: Text
    provenance: Provenance
    input: InputSpec
    frontend: FrontendSpec
    model: ModelSpec
    head: HeadSpec

    @model_validator(mode="after")
    def _parts_fit(self) -> Manifest:
        nameless = isinstance(self.head, OverlapAddHead) and not self.labels
        if len(self.labels) != self.model.classes and not nameless:
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
        if isinstance(self.head, SegmentsHead | AnomalyHead) and self.head.column >= self.model.classes:
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
        if isinstance(self.head, ForecastHead) and not self.head.tells(self.labels):
            raise ValueError(
                f"a forecast of {self.head.horizon} steps of {len(self.head.series)} series has the labels "
                f"'{self.head.series[0]}+1' to '{self.head.series[-1]}+{self.head.horizon}', step by step"
            )
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
        kept = self.model.classes * (head.smooth_frames if isinstance(head, KeywordsHead) else _HEAD_VALUES)
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

    @classmethod
    def from_values(cls, values: dict[str, Any], source: str = "manifest") -> Manifest:
        """Check values as they would stand in the JSON. Raises ManifestError that names every field at fault."""
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            raise ManifestError(f"{source}: {_sentence(error)}") from None


def _sentence(error: pydantic.ValidationError) -> str:
    def one(item: Any) -> str:
        where = ".".join(str(part)[:80] for part in item["loc"]) or "manifest"
        return f"{where}: {item['msg'][:400]} (got {str(item['input'])[:80]!r})"

    faults = error.errors(include_url=False)
    more = f"; and {len(faults) - _MAX_TOLD} more" if len(faults) > _MAX_TOLD else ""
    return "the manifest does not hold together: " + "; ".join(one(item) for item in faults[:_MAX_TOLD]) + more
