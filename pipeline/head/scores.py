"""Scores head: every frame's scores are the result; there is nothing to decide and nothing to carry."""

from __future__ import annotations

from pipeline.component import Array, Field, State
from pipeline.head.events import Events


class Scores:
    """`[B, T, C]` scores to no events; the batcher publishes the scores themselves."""

    block = 1
    latency = 0
    publishes_scores = True
    publishes_samples = False
    tail_samples = 0
    labels: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()

    def initial_state(self, batch: int) -> State:
        return {}

    def step(self, x: Array, state: State) -> tuple[Events, State]:
        return Events.none(), {}

    def flush(self, state: State) -> Events:
        return Events.none()
