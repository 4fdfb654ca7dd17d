"""Where a net is trained and in what precision: a GPU, in bfloat16 or float16; else the CPU, in float32."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError


class Precision:
    """The device, autocast for the forward way, a scaled gradient for the way back where float16 needs it.

    bfloat16 has float32's range and needs no scaling; older GPUs have float16 only. On a CPU both would be slower than
    float32, so there is none. Raises ConfigError: a device that is not there.
    """

    def __init__(self, device: str = "auto", amp: bool = True) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
            raise ConfigError(f"device {device!r}: {str(error).splitlines()[0]}. Use auto or cpu") from None
        self.dtype: torch.dtype | None = None
        if amp and self.device.type == "cuda":
            self.dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        """A context in which the forward way runs in the lower precision, if any."""
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def descend(
        self, loss: Tensor, optimiser: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], clip_norm: float
    ) -> float:
        """Gradients, clipped as a whole (`clip_norm` 0: not), and one step. The norm they had before."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(optimiser)
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm or float("inf"))
        self.scaler.step(optimiser)
        self.scaler.update()
        return float(norm)
