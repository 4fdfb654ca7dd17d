"""What a head yields: events in columns, no object per stream or frame."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.component import Array


class Events(NamedTuple):
    """`n` events of a batch, ordered by the frame that completed them, then by stream.

    stream: int64 `[n]`, position in the batch. label: int64 `[n]`, index into the head's labels.
    start, end: int64 `[n]`, first sample and one past the last, counted from the stream's start.
    score: float32 `[n]`, in 0..1.
    """

    stream: Array
    label: Array
    start: Array
    end: Array
    score: Array

    @classmethod
    def none(cls) -> Events:
        """No event."""
        whole = np.empty(0, np.int64)
        return cls(whole, whole, whole, whole, np.empty(0, np.float32))
