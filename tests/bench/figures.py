"""The arithmetic of the benchmarks: medians, spread, streams a core, ratios. Nothing here measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

CHUNK_MS = 100
CHUNK_US = CHUNK_MS * 1000
GRID = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
"""Percentiles that are kept of a run's latencies."""


@dataclass(frozen=True)
class Series:
    """One figure, measured in several turns."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Series:
        return cls(tuple(float(value) for value in values))

    @property
    def middle(self) -> float:
        return float(median(self.values))

    def against(self, base: Series) -> float:
        """As a multiple of what was measured in the same turns: the middle of their ratios, for a machine that slows
        down between two turns slows both.

        >>> Series.of([10, 22, 30]).against(Series.of([10, 20, 40]))
        1.0
        """
        return float(median(one / other for one, other in zip(self.values, base.values, strict=True)))

    @property
    def spread(self) -> str:
        """The least and the largest, as short as can be read.

        >>> Series.of([301.2, 299.8, 320]).spread
        '300-320'
        >>> Series.of([2.54, 2.5]).spread
        '2.50-2.54'
        """
        low, high = min(self.values), max(self.values)
        places = 0 if high >= 100 else 1 if high >= 10 else 2
        return f"{low:.{places}f}-{high:.{places}f}"


def streams_a_core(us_a_chunk: float) -> float:
    """Live streams that one core bears: a stream has a chunk every 100 ms.

    >>> streams_a_core(100.0)
    1000.0
    """
    return CHUNK_US / us_a_chunk


def grid(latencies_ms: np.ndarray) -> list[float]:
    """The percentiles of GRID."""
    return [float(value) for value in np.percentile(latencies_ms, GRID)]


def over(turns: Sequence[Mapping[str, float]], key: str) -> Series:
    """One figure over all turns that have it."""
    return Series.of(turn[key] for turn in turns if key in turn)


LOSS = 0.15
"""Of a ratio, against the committed one: more fails `make bench-check`."""


@dataclass(frozen=True)
class Verdict:
    """A ratio held against the committed one. Every ratio is the better the larger it is."""

    name: str
    committed: float
    found: float | None

    @property
    def change(self) -> float:
        """As a part of the committed one.

        >>> round(Verdict("", 2.0, 1.5).change, 2)
        -0.25
        """
        return (self.found or 0.0) / self.committed - 1

    @property
    def lost(self) -> bool:
        return self.found is not None and self.change < -LOSS


def compare(committed: Mapping[str, float], found: Mapping[str, float]) -> list[Verdict]:
    """Every committed ratio; `found` is None where it was not measured (a package is absent)."""
    return [Verdict(name, value, found.get(name)) for name, value in committed.items()]


def better(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """The better of two runs, ratio by ratio: a loss counts only when it is there twice."""
    return {name: max(run[name] for run in (one, other) if name in run) for name in {**one, **other}}
