"""Numbers that callers give: checked where they are given, by name."""

from __future__ import annotations

import math
from numbers import Integral, Real

from pipeline.errors import ConfigError


def whole(name: str, value: object, least: int) -> None:
    """Raises ConfigError unless it is a whole number of at least `least`.

    A text would fail where it is first counted with, in words that name nothing.
    """
    if not isinstance(value, Integral) or int(value) < least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least {least}")


def seconds(name: str, value: object) -> None:
    """Raises ConfigError unless it is a length of time; infinity is one, NaN is none."""
    if not isinstance(value, Real) or math.isnan(value):
        raise ConfigError(f"{name} is {value!r}; expected seconds, a number")
