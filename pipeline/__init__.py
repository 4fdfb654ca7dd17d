"""statebelt: streaming inference for models that remember, on Redis Streams.

    from pipeline import Producer, Consumer, load, run

Names are imported when first used, so that a program pays only for what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.bundle import Bundle, load
    from pipeline.consumer import AsyncConsumer, Consumer, Result
    from pipeline.errors import (
        BacklogFull,
        BrokerUnavailable,
        ChunkRejected,
        ConfigError,
        Fenced,
        ManifestError,
        StatebeltError,
        TimedOut,
    )
    from pipeline.manifest import Manifest
    from pipeline.offline import Run, run
    from pipeline.output import Event
    from pipeline.producer import AsyncProducer, Producer, Standing
    from pipeline.settings import Settings
    from pipeline.worker import Worker

_WHERE = {
    "AsyncConsumer": "consumer",
    "AsyncProducer": "producer",
    "BacklogFull": "errors",
    "BrokerUnavailable": "errors",
    "Bundle": "bundle",
    "ChunkRejected": "errors",
    "ConfigError": "errors",
    "Consumer": "consumer",
    "Event": "output",
    "Fenced": "errors",
    "Manifest": "manifest",
    "ManifestError": "errors",
    "Producer": "producer",
    "Result": "consumer",
    "Run": "offline",
    "Settings": "settings",
    "Standing": "producer",
    "StatebeltError": "errors",
    "TimedOut": "errors",
    "Worker": "worker",
    "load": "bundle",
    "run": "offline",
}

__all__ = [
    "AsyncConsumer",
    "AsyncProducer",
    "BacklogFull",
    "BrokerUnavailable",
    "Bundle",
    "ChunkRejected",
    "ConfigError",
    "Consumer",
    "Event",
    "Fenced",
    "Manifest",
    "ManifestError",
    "Producer",
    "Result",
    "Run",
    "Settings",
    "Standing",
    "StatebeltError",
    "TimedOut",
    "Worker",
    "load",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
