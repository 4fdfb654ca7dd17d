"""Forecast: every frame's scores are the next values of some series; those of every k-th frame are the result.

A frame's C scores are `horizon` steps of S series, the next step first, the series of a step side by side: one row of
`[horizon, S]`, in the series' own units. An event tells when it was made, as a result's scores do not: it stands where
the last sample lies that the forecast knows, and its score is how much of the context that the model asks for had been
seen by then. So a result's events and the rows of its scores are the same forecasts, in the same order.
"""

from __future__ import annotations

import numpy as np

from pipeline.component import Array, Field, State, fresh
from pipeline.head.events import Events
from pipeline.manifest import ForecastHead


class Forecast:
    """`[B, T, C]` scores to one event a forecast; the batcher publishes its scores (`published`).

    Args:
        spec: the manifest's head.
        hop_samples: samples from one frame to the next.
    """

    block = 1
    latency = 0
    publishes_scores = True
    publishes_samples = False
    tail_samples = 0
    labels = ("forecast",)
    fields: tuple[Field, ...] = (Field("frames", "int64", ()),)  # seen so far

    def __init__(self, spec: ForecastHead, hop_samples: int = 1) -> None:
        self.spec = spec
        self._hop = hop_samples

    def initial_state(self, batch: int) -> State:
        """Nothing seen."""
        return fresh(self.fields, batch)

    def published(self, scores: Array, seen: int) -> Array:
        """Of the scores `[T, C]` of frames that follow `seen` others, those that are forecasts: `[n, C]`."""
        return scores[-(seen + 1) % self.spec.every_frames :: self.spec.every_frames]

    def step(self, x: Array, state: State) -> tuple[Events, State]:
        """When the forecasts among these frames are made."""
        seen = state["frames"][:, None] + np.arange(1, x.shape[1] + 1)
        frame, row = np.nonzero((seen % self.spec.every_frames == 0).T)
        count = seen[row, frame]
        warm = np.minimum(1.0, count / self.spec.context_frames).astype(np.float32)
        at = count * self._hop
        return Events(row, np.zeros_like(row), at, at, warm), {"frames": state["frames"] + x.shape[1]}

    def flush(self, state: State) -> Events:
        """A forecast is made at once or not at all."""
        return Events.none()
