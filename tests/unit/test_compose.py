"""Composed streams: what lasts in them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install -e '.[training]')")
pytest.importorskip("librosa", reason="librosa is not installed (pip install -e '.[training]')")

from pipeline.errors import ConfigError
from training.augment import Rng, Samples
from training.compose import BG, Composer, Pools, Word
from training.data import LABELS, Clip
from training.recipes.digits import RECIPE

LASTING = dataclasses.replace(
    RECIPE, streams=10, stream_s=4.0, stretched=0.0, foreign=0.4, auxiliary=1, batches_a_voice=3, mixed=0.0
)


class Overheard(Composer):
    """Who says each word, stream by stream."""

    def __init__(self, pools: Pools, recipe: object) -> None:
        super().__init__(pools, recipe)  # type: ignore[arg-type]
        self.heard: list[list[Clip]] = []

    def stream(self, rng: Rng, own: Rng, fresh: bool) -> tuple[Samples, list[Word]]:
        self.heard.append([])
        return super().stream(rng, own, fresh)

    def _spoken(self, rng: Rng, clip: Clip, pace: float) -> Samples:
        self.heard[-1].append(clip)
        return super()._spoken(rng, clip, pace)


@pytest.fixture(scope="module")
def crowd() -> Pools:
    """Twelve who say all the digits, six of them synthetic; six who say other words, and six decoys."""

    def clip(label: int, speaker: str) -> Clip:
        return Clip(np.random.default_rng(label).normal(0, 0.1, 2400).astype(np.float32), label, speaker)

    def digits(kind: str) -> tuple[Clip, ...]:
        return tuple(clip(label, f"{kind}{n}") for n in range(6) for label in range(10))

    others = tuple(clip(len(LABELS), f"other{n}") for n in range(6))
    return Pools(digits("real"), digits("synthetic"), others, tuple(clip(BG, f"decoy{n}") for n in range(6)), ())


def voices(pools: Pools, recipe: object, batches: int = 24) -> tuple[dict[tuple[int, int], set[str]], list[np.ndarray]]:
    """Of each stream, by its row and when it ends: whose digits are in it (of a foreign one, whose words); and what was
    fresh."""
    composer = Overheard(pools, recipe)
    found: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    context, fresh = None, []
    for index in range(batches):
        composer.heard.clear()
        batch, context = composer.batch(index, context)
        fresh.append(batch.fresh)
        for row, clips in enumerate(composer.heard):
            said = [clip for clip in clips if clip.label < BG] or clips
            found[row, (index + row) // 3].update(clip.speaker for clip in said)
    return found, fresh


def test_a_stream_that_lasts_is_spoken_by_one(crowd: Pools) -> None:
    found, fresh = voices(crowd, LASTING)
    assert all(len(who) == 1 for who in found.values())
    assert len(set.union(*found.values())) > 18  # and others by others
    for index, began in enumerate(fresh[1:], start=1):
        assert began.tolist() == [(index + row) % 3 == 0 for row in range(10)]
    assert fresh[0].all()


def test_many_speak_where_it_is_said(crowd: Pools) -> None:
    for recipe in (
        dataclasses.replace(LASTING, mixed=1.0),
        dataclasses.replace(LASTING, batches_a_voice=0),
    ):
        found, _ = voices(crowd, recipe)
        assert np.median([len(who) for who in found.values()]) > 3


def test_level_throat_and_microphone_last_as_long(crowd: Pools) -> None:
    composer = Composer(crowd, dataclasses.replace(LASTING, quiet=1.0, level_spread_db=0.0))
    first, context = composer.batch(3, None)  # rows 0, 3, 6, 9 begin
    second, context = composer.batch(4, context)
    third, context = composer.batch(5, context)
    fourth, _ = composer.batch(6, context)
    for row in (0, 3, 6, 9):
        assert (first.bank[row] == second.bank[row]).all()
        assert (first.bank[row] == third.bank[row]).all()
    assert any((first.bank[row] != fourth.bank[row]).any() for row in (0, 3, 6, 9))


@pytest.mark.parametrize("wrong", [{"batches_a_voice": -1}, {"mixed": 1.5}, {"mixed": -0.1}], ids=str)
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(RECIPE, **wrong)  # type: ignore[arg-type]
