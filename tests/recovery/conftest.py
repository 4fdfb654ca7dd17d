"""Scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.chaos import bundles
from tests.chaos.plan import Sent
from tests.recovery.scene import Scene

Stage = Callable[..., Scene]


@pytest.fixture(scope="session")
def chaos_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bundles.write(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def scene(redis_client: redis.Redis, url: str, tmp_path: Path, chaos_bundles: dict[str, Path]) -> Iterator[Stage]:
    """Makes a scene on an empty server; its workers end with the test."""
    scenes: list[Scene] = []

    def make(sent: list[Sent], partitions: int = 4) -> Scene:
        redis_client.flushall()
        folder = tmp_path / str(len(scenes))
        folder.mkdir()
        scenes.append(Scene(redis_client, url, folder, chaos_bundles, sent, partitions))
        return scenes[-1]

    yield make
    for each in scenes:
        each.close()
