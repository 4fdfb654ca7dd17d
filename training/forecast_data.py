"""ETTh1: seven series of an electricity transformer, hourly (Zhou et al., Informer, arXiv 2012.07436), and their split.

The benchmark's: months of 30 days, 12 to learn from, 4 to stop by, 4 to be judged by; standardised by mean and
deviation of the first 12; a forecast counts where all it foretells lies within its part, whatever came before it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.csvfile import read_csv
from training import data

RATE_HZ = 1 / 3600
MONTH = 30 * 24
LEARNT, STOPPED, JUDGED = (0, 12 * MONTH), (12 * MONTH, 16 * MONTH), (16 * MONTH, 20 * MONTH)

Values = NDArray[np.float32]


def file() -> Path:
    """The corpus's file."""
    return data.corpus("ett") / "ETTh1.csv"


@cache
def series() -> tuple[tuple[str, ...], Values]:
    """(names of the S series, values `[N, S]`) of the 20 months of the split."""
    table = read_csv(file())
    return table.columns, table.values[: JUDGED[1]].astype(np.float32)


def origins(part: tuple[int, int], horizon: int) -> NDArray[np.int64]:
    """`[n]`: the hours from which forecasts within a part are made: each foretells the `horizon` hours behind it."""
    return np.arange(max(part[0] - 1, 0), part[1] - horizon)


def following(values: Values, at: NDArray[np.int64], horizon: int) -> Values:
    """`[n, horizon, S]`: what came behind each of these hours."""
    return np.asarray(values[at[:, None] + np.arange(1, horizon + 1)])


def standardised(values: Values) -> Values:
    """`[..., S]` in deviations of the months that are learnt from."""
    _, every = series()
    learnt = every[: LEARNT[1]].astype(np.float64)
    return np.asarray((values - learnt.mean(axis=0)) / learnt.std(axis=0), np.float32)
