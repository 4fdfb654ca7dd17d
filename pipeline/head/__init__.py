"""Scores to events: smoothing, hysteresis, decoding."""

from __future__ import annotations

from pipeline.head.events import Events
from pipeline.head.keywords import Keywords
from pipeline.head.scores import Scores
from pipeline.manifest import KeywordsHead, Manifest

Head = Keywords | Scores


def build(manifest: Manifest) -> Head:
    """The head that a manifest names."""
    if isinstance(manifest.head, KeywordsHead):
        return Keywords(manifest.head, manifest.labels)
    return Scores()


__all__ = ["Events", "Head", "Keywords", "Scores", "build"]
