"""The examples of docstrings, run as they stand; those of producers and consumers with a server and a worker."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import pipeline
from pipeline.bundle import load
from pipeline.producer import Producer
from tests.harness import worker

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(pipeline.__path__, "pipeline.") if "__main__" not in module.name
)
WITH_REDIS = ["pipeline.producer", "pipeline.consumer"]


def examples(module: str, **names: object) -> doctest.TestResults:
    return doctest.testmod(importlib.import_module(module), extraglobs={"np": np, "asyncio": asyncio, **names})


@pytest.mark.parametrize("module", [name for name in MODULES if name not in WITH_REDIS])
def test_examples(module: str) -> None:
    assert examples(module).failed == 0


@pytest.mark.parametrize("module", WITH_REDIS)
def test_examples_with_redis(module: str, url: str) -> None:
    with Producer("calls", url=url, sample_rate_hz=8000) as producer:
        producer.push_many([(f"call-{n}", np.zeros(800, np.int16), True) for n in (1, 2)])
        with worker(url, load("digits"), topic="calls"):
            result = examples(module, url=url)
    assert result.failed == 0
    assert result.attempted >= 5
