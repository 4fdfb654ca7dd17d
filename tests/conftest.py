"""Fixtures for tests that need a Redis: a real one, never a mock. And what training leaves behind is put right."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Started in the background of a shell, where Ctrl-C is ignored, and so it would be in all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


HERE = Path(__file__).parent
UNTRACED = (
    *("contract", "fuzz", "recovery", "chaos", "adopt/test_silero.py", "adopt/test_others.py"),
    *("adopt/test_dtln.py", "adopt/test_dtln_redis.py", "adopt/test_silero_redis.py", "redis/test_resume.py"),
    *("redis/test_drop_oldest.py", "redis/test_two_producers.py", "redis/test_remembered.py", "redis/test_replicas.py"),
    *("redis/test_acl.py", "redis/test_exact.py", "redis/test_lease_machine.py", "redis/test_overlap.py"),
    *("unit/test_verify.py", "unit/test_cli_verify.py", "unit/test_report.py", "unit/test_recipes.py"),
    *("unit/test_training.py", "unit/test_together.py", "unit/test_quantise.py", "unit/test_surprise.py"),
)
"""Where the same lines of `pipeline` run very many times. Tracing them would take minutes, to learn what other tests
show: coverage is what those others reach."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have pytest-cov leave alone what is UNTRACED."""
    for item in items:
        if any(item.path.is_relative_to(HERE / untraced) for untraced in UNTRACED):
            item.add_marker("no_cover")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The embedded server, one a session (and one a process under xdist)."""
    with EmbeddedServer(tmp_path_factory.mktemp("redis"), fsync="no") as server:
        yield server


@pytest.fixture
def url(server: EmbeddedServer) -> Iterator[str]:
    """The URL of an empty server."""
    with connect(server.url) as client:
        client.flushall()
        yield server.url


@pytest.fixture
def redis_client(url: str) -> Iterator[redis.Redis]:
    """A client of an empty server."""
    with connect(url) as client:
        yield client


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Training in this process has torch flush them to zero; what follows is to see a common processor."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)
