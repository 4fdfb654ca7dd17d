"""An array that a program hands over, as the samples that a topic carries: checked, then converted.

One place for `push` and `run`, so that what a stream yields is what the whole array yields.
"""

from __future__ import annotations

import numpy as np

from pipeline.component import Array
from pipeline.errors import ChunkRejected
from pipeline.manifest import InputSpec

LOUDEST = 2.0
"""Of float32 that becomes int16, in full scales. What codecs overshoot, and two signals added, stay within it (6 dB
above full scale), and are clipped. Beyond it, it is a mistake of scale: int16 values as floats reach it in any room."""

_TO_INT16 = {  # what makes int16 of a full-scale signal of this type
    "int8": 'x.astype("int16") * 256',
    "uint8": '(x.astype("int16") - 128) * 256',
    "uint16": '(x.astype("int32") - 32768).astype("int16")',
    "int32": '(x >> 16).astype("int16")',
}


def carried(samples: Array, spec: InputSpec, whose: str) -> Array:
    """`[N, channels]` of the topic's sample type, of int16 or float32 `[N]` or `[N, channels]`.

    Args:
        whose: they are; the messages begin with it.
    Raises:
        ChunkRejected: `wrong_type`, `wrong_shape`, `not_finite`, or `out_of_range`: float32 far beyond -1..1 for int16.
    """
    expected = f"[N, {spec.channels}]" + (" or [N]" if spec.channels == 1 else "")
    try:
        x = np.asarray(samples)
    except ValueError:
        raise ChunkRejected(
            "wrong_shape", f"{whose}: samples are no array (rows differ); expected {expected}"
        ) from None
    if x.dtype not in (np.int16, np.float32):
        advice = _advice(x.dtype, spec.sample_type)
        raise ChunkRejected("wrong_type", f"{whose}: samples are {x.dtype}; expected int16 or float32{advice}")
    if x.ndim == 1 and spec.channels == 1:
        x = x[:, None]
    if x.ndim != 2 or x.shape[1] != spec.channels:
        raise ChunkRejected("wrong_shape", f"{whose}: shape {list(x.shape)}; expected {expected}")
    if x.dtype == np.float32:
        if not np.isfinite(x).all():
            raise ChunkRejected("not_finite", f"{whose}: samples hold NaN or infinity; repair them first")
        if spec.sample_type == "int16" and (fault := off_scale(x)):
            raise ChunkRejected("out_of_range", f'{whose}: {fault}, or use x.astype("int16")')
    return to_sample_type(x, spec.sample_type)


def _advice(dtype: np.dtype[np.generic], sample_type: str) -> str:
    """Code that makes samples of what is none, without a change of what is heard."""
    if dtype.kind == "f":
        return ': use x.astype("float32"), of sound in -1..1'
    if dtype.kind not in "iu":
        return ""
    if sample_type == "float32":
        return ': use x.astype("float32"), on the scale that the bundle takes (of sound -1..1)'
    whole = _TO_INT16.get(dtype.name)
    plain = 'x.astype("int16")'
    if whole is None:
        return f": use {plain}, of values within -32768..32767"
    return f": use {whole} if they are sound of {8 * dtype.itemsize} bits, {plain} if they are int16 values"


def off_scale(samples: Array) -> str | None:
    """What is wrong with the scale of float32 that is to become int16, and what to do; or None."""
    if not samples.size:
        return None
    peak = max(samples.min(), samples.max(), key=abs)
    if abs(peak) <= LOUDEST:
        return None
    return (
        f"float32 samples reach {peak:g}; expected -1..1 (up to {LOUDEST:g} is clipped), as int16 is carried: "
        "if they are int16 values, divide them by 32768"
    )


def to_sample_type(samples: Array, sample_type: str) -> Array:
    """float32 in -1..1 to int16 (rounded, clipped) or the other way; equal types as they are.

    >>> to_sample_type(np.array([0.5, -1.0, 2.0], np.float32), "int16").tolist()
    [16384, -32768, 32767]
    """
    if samples.dtype == sample_type:
        return samples
    if sample_type == "int16":
        return np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype(np.int16)
    return samples.astype(np.float32) / np.float32(32768)
