"""A recipe is overridden from text, by the types of its fields; what cannot be is told, with what there is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pipeline.errors import ConfigError
from training.recipe import Recipe, parse_settings


@dataclass(frozen=True)
class Part:
    threshold: float = 0.5
    frames: int = 3


@dataclass(frozen=True)
class Own(Recipe):
    name: str = "own"
    taps: tuple[int, ...] = (1, 2)
    limit: float | None = 0.5
    head: Part = field(default_factory=Part)


def test_every_type_is_read_from_text():
    given = ["hidden=256", "learning_rate=1e-3", "dropout_locked=yes", "cell=gru", "taps=4, 5", "limit=none"]
    made = Own().overridden(parse_settings([*given, "head.threshold=0.25"]))
    assert (made.hidden, made.learning_rate, made.dropout_locked, made.cell) == (256, 1e-3, True, "gru")
    assert (made.taps, made.limit, made.head) == ((4, 5), None, Part(0.25, 3))
    assert Own().overridden({"amp": "off", "limit": "2"}) == Own(amp=False, limit=2.0)


def test_a_cells_own_options_are_read_as_what_they_look_like():
    made = Own().overridden({"options.stride": "2", "options.taps": "5,3", "options.share": "0.5", "options.kind": "a"})
    assert made.options == {"stride": 2, "taps": (5, 3), "share": 0.5, "kind": "a"}
    assert Own().options == {}


def test_a_recipe_survives_json():
    import json

    made = Own(taps=(7,), head=Part(0.1, 9), seed=3, options={"channels": (3, 4), "stride": 2})
    assert Own.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"hiden": "3"}, "no field 'hiden'; there are: name, cell, seed.*taps"),
        ({"hidden": "many"}, "hidden='many': not of type int"),
        ({"hidden": "3.5"}, "hidden='3.5': not of type int"),
        ({"taps": "1,x"}, "taps='x': not of type int"),
        ({"amp": "perhaps"}, "amp='perhaps': yes or no"),
        ({"head": "1"}, "set head.threshold, head.frames"),
        ({"head.width": "1"}, "no field 'head.width'; there are: threshold, frames"),
        ({"hidden.more": "1"}, "'hidden' has no parts"),
        ({"options": "2"}, "'options': set options.name"),
        ({"passes": "0"}, "own: passes is 0; it must be at least 1"),
        ({"dropout": "1"}, "own: dropout is 1.0"),
        ({"warm_up": "2"}, "from 0 to 1"),
        ({"learning_rate": "0"}, "above 0"),
        ({"clip_norm": "-1"}, "0 or more"),
    ],
)
def test_what_cannot_be_is_told(given: dict[str, str], told: str):
    with pytest.raises(ConfigError, match=told):
        Own().overridden(given)


@pytest.mark.parametrize("given", [["hidden"], ["=3"], ["a=1", "a=2"]])
def test_settings_are_pairs_and_each_once(given: list[str]):
    with pytest.raises(ConfigError):
        parse_settings(given)


def test_a_stored_recipe_with_a_foreign_field_is_refused():
    with pytest.raises(ConfigError, match="Own has no tapes"):
        Own.from_dict({"tapes": 3})
