"""Samples to frames: vectorised over streams."""

from __future__ import annotations

from pipeline.frontend.identity import Identity
from pipeline.frontend.power import PowerSpectrum
from pipeline.frontend.spectra import COMPILED
from pipeline.frontend.window import Window
from pipeline.manifest import Manifest, PowerFrontend, WindowFrontend

Frontend = PowerSpectrum | Window | Identity


def build(manifest: Manifest) -> Frontend:
    """The frontend that a manifest names."""
    spec = manifest.frontend
    if isinstance(spec, PowerFrontend):
        return PowerSpectrum(spec.window_samples, spec.hop_samples)
    if isinstance(spec, WindowFrontend):
        return Window(spec.window_samples, spec.hop_samples, manifest.input.channels)
    return Identity(manifest.input.channels)


__all__ = ["COMPILED", "Frontend", "Identity", "PowerSpectrum", "Window", "build"]
