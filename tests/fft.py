"""Power spectra by the book, in numpy: the sums of `pipeline/frontend/_spectra.c` in their order, so to the last bit.

Nothing is shared with it but the algorithm: N real samples as N / 2 complex ones, decimated in frequency by 4, 2, 3 and
5, then taken apart. numpy multiplies and adds element by element, and contracts nothing either.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float32]
Complex = tuple[Real, Real]

F = np.float32
TURN = 2 * np.pi


def plus(a: Complex, b: Complex) -> Complex:
    return a[0] + b[0], a[1] + b[1]


def minus(a: Complex, b: Complex) -> Complex:
    return a[0] - b[0], a[1] - b[1]


def times(a: Complex, c: float) -> Complex:
    return a[0] * F(c), a[1] * F(c)


def clockwise(a: Complex) -> Complex:
    return a[1], -a[0]


def rotated(a: Complex, turns: NDArray[np.float64]) -> Complex:
    """By so many radians, clockwise."""
    cos, sin = np.cos(turns).astype(F), (-np.sin(turns)).astype(F)
    return a[0] * cos - a[1] * sin, a[0] * sin + a[1] * cos


def small(x: list[Complex]) -> list[Complex]:
    """The transform of two, three, four or five points."""
    if len(x) == 2:
        return [plus(*x), minus(*x)]
    if len(x) == 3:
        both, side = plus(x[1], x[2]), clockwise(times(minus(x[1], x[2]), np.sin(TURN / 3)))
        a = minus(x[0], times(both, 0.5))
        return [plus(x[0], both), plus(a, side), minus(a, side)]
    if len(x) == 4:
        a, b = plus(x[0], x[2]), minus(x[0], x[2])
        c, d = plus(x[1], x[3]), clockwise(minus(x[1], x[3]))
        return [plus(a, c), plus(b, d), minus(a, c), minus(b, d)]
    c1, s1, c2, s2 = np.cos(TURN / 5), np.sin(TURN / 5), np.cos(2 * TURN / 5), np.sin(2 * TURN / 5)
    outer, inner = plus(x[1], x[4]), plus(x[2], x[3])
    across, beside = minus(x[1], x[4]), minus(x[2], x[3])
    a = plus(plus(x[0], times(outer, c1)), times(inner, c2))
    b = plus(plus(x[0], times(outer, c2)), times(inner, c1))
    c = clockwise(plus(times(across, s1), times(beside, s2)))
    d = clockwise(minus(times(across, s2), times(beside, s1)))
    return [plus(plus(x[0], outer), inner), plus(a, c), plus(b, d), minus(b, d), minus(a, c)]


def transform(z: Complex) -> Complex:
    """`[n, H]` each, over the last axis: by the least radix of 4, 2, 3, 5 that divides H, then each part by itself."""
    length = z[0].shape[1]
    if length == 1:
        return z
    radix = next(r for r in (4, 2, 3, 5) if length % r == 0)
    part = length // radix
    points = small([(z[0][:, j * part : (j + 1) * part], z[1][:, j * part : (j + 1) * part]) for j in range(radix)])
    out = np.empty_like(z[0]), np.empty_like(z[1])
    for j, point in enumerate(points):
        turned = rotated(point, TURN * np.arange(part) * j / length) if j else point
        out[0][:, j::radix], out[1][:, j::radix] = transform(turned)
    return out


def power(windows: Real, window: Real) -> Real:
    """`[n, N]`, under `window` `[N]`, to `[n, N / 2 + 1]`."""
    length = len(window)
    x = windows * (F(0.5) * window)
    re, im = transform((x[:, 0::2], x[:, 1::2]))
    out = np.empty((len(x), length // 2 + 1), F)
    ends = re[:, 0] + im[:, 0], re[:, 0] - im[:, 0]
    out[:, 0], out[:, -1] = ((end + end) * (end + end) for end in ends)
    k = np.arange(1, length // 4 + 1)
    a, b = (re[:, k], im[:, k]), (re[:, -k], im[:, -k])
    even = a[0] + b[0], a[1] - b[1]
    odd = rotated((a[1] + b[1], b[0] - a[0]), TURN * k / length)
    up, down = plus(even, odd), minus(even, odd)
    out[:, k] = up[0] * up[0] + up[1] * up[1]
    out[:, length // 2 - k] = down[0] * down[0] + down[1] * down[1]
    return out
