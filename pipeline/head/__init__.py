"""Scores to events (smoothing, hysteresis, decoding), or to audio."""

from __future__ import annotations

from pipeline.head.activity import Activity
from pipeline.head.anomaly import Anomaly
from pipeline.head.events import Events
from pipeline.head.forecast import Forecast
from pipeline.head.keywords import Keywords
from pipeline.head.overlap_add import OverlapAdd
from pipeline.head.scores import Scores
from pipeline.head.segments import Segments
from pipeline.manifest import (
    ActivityHead,
    AnomalyHead,
    ForecastHead,
    KeywordsHead,
    Manifest,
    OverlapAddHead,
    SegmentsHead,
)

Head = Keywords | Scores | Segments | OverlapAdd | Activity | Forecast | Anomaly


def build(manifest: Manifest) -> Head:
    """The head that a manifest names."""
    spec = manifest.head
    if isinstance(spec, KeywordsHead):
        return Keywords(spec, manifest.labels, manifest.hop_samples)
    if isinstance(spec, SegmentsHead):
        return Segments(spec, manifest.hop_samples)
    if isinstance(spec, OverlapAddHead):
        return OverlapAdd(manifest.model.classes, manifest.hop_samples)
    if isinstance(spec, ActivityHead):
        return Activity(spec, manifest.labels, manifest.hop_samples)
    if isinstance(spec, ForecastHead):
        return Forecast(spec, manifest.hop_samples)
    if isinstance(spec, AnomalyHead):
        return Anomaly(spec, manifest.hop_samples)
    return Scores()


__all__ = ["Activity", "Anomaly", "Events", "Forecast", "Head", "Keywords", "OverlapAdd", "Scores", "Segments", "build"]
