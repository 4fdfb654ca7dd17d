"""What a topic carries, agreed by all who use it: `sb:<topic>:meta`, written once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, Literal

import redis

from pipeline.broker.connection import translate
from pipeline.broker.functions import call
from pipeline.broker.keys import MAX_PARTITIONS, check_name, meta_key
from pipeline.errors import ConfigError

VERSION = 1
"""Of the layout of keys and entries."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic's description. Producers, workers and consumers compare theirs with it.

    >>> Topic("calls", sample_rate_hz=8000.0, sample_type="int16", channels=1, partitions=4).partitions
    4
    """

    name: str
    sample_rate_hz: float
    sample_type: Literal["int16", "float32"]
    channels: int
    partitions: int

    def __post_init__(self) -> None:
        check_name("topic", self.name)
        for name, kind, wanted in (
            ("sample_rate_hz", Real, "a number"),
            ("channels", Integral, "a whole number"),
            ("partitions", Integral, "a whole number"),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ConfigError(
                    f"topic {self.name!r}: {name} is {value!r} ({type(value).__name__}); expected {wanted}"
                )
        if not 1 <= self.partitions <= MAX_PARTITIONS:
            raise ConfigError(f"topic {self.name!r}: {self.partitions} partitions; expected 1 to {MAX_PARTITIONS}")
        if not self.sample_rate_hz > 0 or self.channels < 1 or self.sample_type not in ("int16", "float32"):
            raise ConfigError(
                f"topic {self.name!r}: {self.sample_rate_hz} Hz, {self.channels} x {self.sample_type!r}; "
                f"expected a positive rate, at least one channel, int16 or float32"
            )

    def fields(self) -> dict[str, str]:
        """As stored in Redis. A whole rate is written without a decimal point."""
        about = {key: str(value) for key, value in asdict(self).items() if key != "name"}
        return {**about, "sample_rate_hz": f"{float(self.sample_rate_hz):.17g}", "version": str(VERSION)}


def create(client: redis.Redis, topic: Topic, *, any_partitions: bool = False) -> Topic:
    """Create the topic unless it exists; it must then be described as `topic` is. Returns what is there.

    With `any_partitions`, its number of partitions is only a wish: who came first decided it.

    Raises:
        ConfigError: the existing topic differs: the message names both sides of every difference.
        BrokerUnavailable: no answer; call again.
    """
    flat = [item for pair in topic.fields().items() for item in pair]
    _, stored = call(client, "sb_create_topic", [meta_key(topic.name)], flat)
    found = _parse(topic.name, dict(zip(stored[::2], stored[1::2], strict=True)))
    differences = [
        f"{key} is {getattr(found, key)!r} there and {getattr(topic, key)!r} here"
        for key in ("sample_rate_hz", "sample_type", "channels", "partitions")
        if getattr(found, key) != getattr(topic, key) and not (any_partitions and key == "partitions")
    ]
    if differences:
        raise ConfigError(
            f"topic {topic.name!r} exists with another description: {'; '.join(differences)}. "
            f"Use a topic of another name, or convert the signal."
        )
    return found


def describe(client: redis.Redis, name: str) -> Topic | None:
    """The topic of that name, or None.

    Raises:
        ConfigError: the key holds something else.
        BrokerUnavailable: no answer; call again.
    """
    check_name("topic", name)
    with translate():
        stored = client.hgetall(meta_key(name))
    return _parse(name, stored) if stored else None


def _parse(name: str, stored: Mapping[Any, Any]) -> Topic:
    about = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in stored.items()}
    if about.get("version") != str(VERSION):
        raise ConfigError(
            f"topic {name!r} has layout version {about.get('version')!r}; this program knows {VERSION}. "
            f"Upgrade the older of the two."
        )
    try:
        return Topic(
            name=name,
            sample_rate_hz=float(about["sample_rate_hz"]),
            sample_type=about["sample_type"],  # checked by Topic itself
            channels=int(about["channels"]),
            partitions=int(about["partitions"]),
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{meta_key(name)} describes no topic: {about}. Delete it, or use another name.") from error
