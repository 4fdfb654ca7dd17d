"""What a topic carries for a bundle, and how samples become frames."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.manifest.part import Part


class InputSpec(Part):
    """What a topic must carry for this bundle: `[N, channels]` samples at `sample_rate_hz`.

    any_rate: the model counts samples and knows no seconds: a topic, or a file, may have another rate. Times are then
        told by that one.
    """

    sample_rate_hz: float = Field(gt=0, le=1e6)
    channels: int = Field(default=1, ge=1, le=65_536)
    sample_type: Literal["int16", "float32"] = "int16"
    any_rate: bool = False


class _Windowed(Part):
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


class IdentityFrontend(Part):
    """Frames are the samples: sensor vectors, or frames that the producer computed."""

    kind: Literal["identity"] = "identity"


class WindowFrontend(_Windowed):
    """Frames are windows of raw samples: `hop_samples` new ones behind the last of the window before (zeros at the
    beginning). int16 is scaled by 1/32768 first (`pipeline/frontend/window.py`)."""

    kind: Literal["window"] = "window"


FrontendSpec = Annotated[PowerFrontend | IdentityFrontend | WindowFrontend, Field(discriminator="kind")]
