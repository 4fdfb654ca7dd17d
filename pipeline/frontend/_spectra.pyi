from typing import Any

from pipeline.component import Array

def plan(window: Array) -> Any:
    """What `spectra` needs to know of a window, float32 `[N]`.

    Raises ValueError: N is not 2 * 2^a * 3^b * 5^c, or above 4096.
    """

def spectra(plan: Any, signal: Array, streams: int, hop: int, power: Array) -> None:
    """Write `power`, `[streams, t, N // 2 + 1]`: the spectra of t windows of each of `signal`, `[streams, n]`.

    Raises ValueError: the windows do not lie within the signal.
    """
