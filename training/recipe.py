"""The typed config that every recipe has in common, and how a command line overrides it.

A recipe is a frozen dataclass: what decides a training run, and nothing else. Two runs of one recipe on one machine
give the same weights. A task's own recipe adds its fields:

    @dataclass(frozen=True)
    class Commands(Recipe):
        name: str = "commands"
        mels: int = 40
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Self

from pipeline.errors import ConfigError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Recipe:
    """Fields that mean the same in every task.

    cell: a name of `training.models.CELLS`. layers, hidden: its size; a cell reads them its own way. options: what else
        the cell's class takes, `options.stride=2` on a command line.
    dropout_input, dropout, dropout_output: on the frames, between the layers, before the readout. dropout_locked: one
        mask for all frames of a segment (arXiv 1512.05287) instead of one for each.
    begin: a run under `runs/` whose kept weights this one begins with, instead of random ones.
    leave_out: the speaker, subject or fold that no training hears; "" leaves out none.
    passes, batches, streams: passes of so many batches of B streams. A batch continues the one before it.
    segment_frames: gradients go back so far at most; the state goes on, detached. 0: over the whole batch.
    learning_rate: the highest; it rises over `warm_up` (a share of all steps) and falls along a cosine.
    clip_norm: of the whole gradient; 0: not clipped. label_smoothing: shared among all classes.
    class_balance: 0 weighs frames alike, 1 classes alike (a frame of a class as n_mean / n_class), between: a power.
    average: decay of the averaged weights, which are what is validated and exported; 0: the last weights themselves.
    patience_passes: so many passes without a better validation loss end the run, and the best pass's weights are kept;
        0: all passes are run, and the last weights kept.
    amp: mixed precision, on a GPU alone. device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1".
    """

    name: str = ""
    cell: str = "lstm"
    seed: int = 7
    layers: int = 1
    hidden: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    dropout_input: float = 0.0
    dropout: float = 0.0
    dropout_locked: bool = False
    dropout_output: float = 0.0
    begin: str = ""
    leave_out: str = ""
    passes: int = 10
    batches: int = 32
    streams: int = 16
    segment_frames: int = 0
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    warm_up: float = 0.05
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    class_balance: float = 0.0
    average: float = 0.0
    patience_passes: int = 0
    amp: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "passes", "batches", "streams"):
            self._demand(name, getattr(self, name) >= 1, "at least 1")
        for name in ("segment_frames", "patience_passes", "weight_decay", "clip_norm"):
            self._demand(name, getattr(self, name) >= 0, "0 or more")
        for name in ("dropout_input", "dropout", "dropout_output", "label_smoothing", "average"):
            self._demand(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name in ("warm_up", "class_balance"):
            self._demand(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        self._demand("learning_rate", self.learning_rate > 0, "above 0")

    def _demand(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"{self.name or 'recipe'}: {name} is {getattr(self, name)}; it must be {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ConfigError: fields that this recipe does not have."""
        return typing.cast(Self, _built(cls, values))

    def overridden(self, given: Mapping[str, str]) -> Self:
        """With these fields set from text, each read by its field's type; a field of a part is `part.field`.

        Raises:
            ConfigError: a name that is no field (the message lists them), or a text that is no value of its type.

        >>> Recipe().overridden({"hidden": "256", "dropout_locked": "yes"}).hidden
        256
        """
        changed: Any = self
        for name, text in given.items():
            changed = _set(changed, name.split("."), name, text)
        return typing.cast(Self, changed)


def parse_settings(given: list[str]) -> dict[str, str]:
    """`["hidden=256", "cell=gru"]` to a dictionary. Raises ConfigError: no `name=value`, or a name twice."""
    found: dict[str, str] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"{text!r} sets nothing: write name=value")
        if name.strip() in found:
            raise ConfigError(f"{name.strip()!r} is set twice")
        found[name.strip()] = value.strip()
    return found


def _built(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    made = {}
    for name, value in values.items():
        if is_dataclass(hints[name]) and isinstance(value, Mapping):
            value = _built(hints[name], value)
        elif typing.get_origin(hints[name]) is tuple:
            value = tuple(value)  # JSON has lists only
        elif typing.get_origin(hints[name]) is dict:
            value = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        made[name] = value
    return kind(**made)


def _set(part: Any, path: list[str], told: str, text: str) -> Any:
    names = [f.name for f in fields(part)]
    if path[0] not in names:
        raise ConfigError(f"no field {told!r}; there are: {', '.join(names)}")
    value, hint = getattr(part, path[0]), typing.get_type_hints(type(part))[path[0]]
    if is_dataclass(value) and len(path) == 1:
        inside = ", ".join(f"{path[0]}.{f.name}" for f in fields(value))
        raise ConfigError(f"{told!r} has fields of its own: set {inside}")
    if isinstance(value, dict):
        if len(path) != 2:
            raise ConfigError(f"{told!r}: set {path[0]}.name, one of them at a time")
        return replace(part, **{path[0]: {**value, path[1]: _guessed(text)}})
    if len(path) > 1:
        if not is_dataclass(value):
            raise ConfigError(f"no field {told!r}: {path[0]!r} has no parts")
        return replace(part, **{path[0]: _set(value, path[1:], told, text)})
    return replace(part, **{path[0]: _parsed(hint, told, text)})


def _guessed(text: str) -> Any:
    """A whole number, a number, a tuple of them where there are commas, or the text itself."""
    if "," in text:
        return tuple(_guessed(part.strip()) for part in text.split(",") if part.strip())
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _parsed(hint: Any, name: str, text: str) -> Any:
    """The text as a value of the type: bool, int, float, str, a tuple of those, or None."""
    if isinstance(hint, types.UnionType):
        options = typing.get_args(hint)
        if type(None) in options and text.lower() in ("none", ""):
            return None
        hint = next(option for option in options if option is not type(None))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_parsed(inner, name, part.strip()) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise ConfigError(f"{name}={text!r}: yes or no?")
        return text.lower() in _TRUE
    if hint is str:
        return text
    try:
        return hint(text)
    except ValueError:
        raise ConfigError(f"{name}={text!r}: not of type {hint.__name__}") from None
