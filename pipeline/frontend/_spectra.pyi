from typing import Any

from pipeline.component import Array

def plan(window: Array) -> Any:
    """What `spectra` needs to know of a window, float32 `[N]`.

    Raises ValueError: N is not 2 * 2^a * 3^b * 5^c, or above 4096.
    """

def spectra(plan: Any, streams: int, context: Array, samples: Array, ints: bool, power: Array, after: Array) -> None:
    """`pipeline.frontend.spectra.Spectra`, of so many streams; ints: samples are int16.

    Raises ValueError: the arrays do not fit each other.
    """
