"""Bundles adopted by recipe from installed wheels, as a user makes them; recordings at 16 kHz."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import audio
from pipeline.adopt.recipe import locate, read_recipe
from pipeline.bundle import Bundle, load
from pipeline.cli.app import app
from pipeline.errors import ConfigError
from pipeline.manifest import InputSpec
from tests.harness import DATA

SPEC = InputSpec(sample_rate_hz=16_000)


@cache
def original(recipe: str) -> Path:
    """The model's file in its wheel; without the wheel the test skips (in CI it fails)."""
    try:
        return locate(read_recipe(recipe), recipe)[0]
    except ConfigError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle that `statebelt adopt --recipe NAME` writes."""
    folder = tmp_path_factory.mktemp("adopted")

    @cache
    def by(recipe: str, *flags: str) -> Path:
        original(recipe)
        path = folder / f"{recipe}{len(list(folder.iterdir()))}.onnx"
        done = CliRunner().invoke(app, ["adopt", "--recipe", recipe, "-o", str(path), *flags])
        assert done.exit_code == 0, done.output
        return path

    return by


@pytest.fixture(scope="session")
def bundle(adopted: Callable[[str], Path]) -> Callable[[str], Bundle]:
    return cache(lambda recipe: load(adopted(recipe)))


def recordings() -> dict[str, np.ndarray]:
    """int16 `[N, 1]` at 16 kHz: continuous speech, and digits of a few speakers, end to end with pauses."""
    if not (DATA / "speech" / "jfk.flac").is_file():
        pytest.skip(f"no recordings in {DATA} (set STATEBELT_DATA)")
    rng = np.random.default_rng(0)
    parts = []
    for path in sorted((DATA / "fsdd").glob("*/*_1*.flac"))[::7]:
        parts += [audio.read(path, SPEC), rng.integers(-8, 9, (int(rng.integers(2000, 12_000)), 1)).astype(np.int16)]
    return {"jfk": audio.read(DATA / "speech" / "jfk.flac", SPEC), "digits": np.concatenate(parts)}
