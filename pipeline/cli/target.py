"""The topic that a push goes to: what it carries is known at once, it is made when there is something to push."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.manifest import InputSpec
    from pipeline.producer import Producer
    from pipeline.pushing import WhenFull
    from pipeline.settings import Settings

_DEFAULT_RATE_HZ = 8000.0


class Wishes(NamedTuple):
    """What the flags say of a topic; None: nothing."""

    rate_hz: float | None
    channels: int | None
    sample_type: Literal["int16", "float32"] | None


class Target:
    """A topic, there or not, and its producer.

    Args:
        spec: what it carries, or will.
        make: a producer, and the topic with it.
        there: whether it is there: then the producer is made at once, as that tells what the flags say otherwise.
    """

    def __init__(self, topic: str, spec: InputSpec, make: Callable[[], Producer], there: bool) -> None:
        self.topic, self.spec = topic, spec
        self._make = make
        self.producer: Producer | None = make() if there else None

    def open(self) -> Producer:
        """The producer. The topic is made where it is not there yet: a name mistyped would otherwise stand for ever."""
        self.producer = self.producer or self._make()
        return self.producer

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.producer is not None:
            self.producer.close()


def target(
    given: Settings,
    wishes: Wishes,
    paths: list[Path],
    columns: tuple[str, ...] | None,
    when_full: WhenFull,
    timeout_s: float,
) -> Target:
    """The topic as it is, or as flags, the first file and defaults say when it has yet to be created.

    Raises:
        ConfigError: the flags say otherwise than the topic, or what no topic can be.
        BrokerUnavailable: no Redis.
    """
    from pipeline import sensor
    from pipeline.broker.connection import connect
    from pipeline.broker.topic import Topic, describe
    from pipeline.cli.reach import reach
    from pipeline.producer import Producer
    from pipeline.pushing import spec_of

    url = reach(given)
    with closing(connect(url)) as client:
        found = describe(client, given.topic)
    if found:
        wishes = Wishes(
            wishes.rate_hz or found.sample_rate_hz,
            wishes.channels or found.channels,
            wishes.sample_type or found.sample_type,
        )
    elif paths and sensor.is_table(paths[0]):
        wishes = _of_table(paths[0], columns, wishes)
    rate_hz, channels, sample_type = wishes.rate_hz or _DEFAULT_RATE_HZ, wishes.channels or 1, wishes.sample_type
    make = partial(
        Producer,
        given.topic,
        url=url,
        sample_rate_hz=rate_hz,
        channels=channels,
        sample_type=sample_type or "int16",
        partitions=None if found else given.partitions,
        max_backlog=given.max_backlog,
        when_full=when_full,
        timeout_s=timeout_s,
    )
    spec = spec_of(Topic(given.topic, rate_hz, sample_type or "int16", channels, given.partitions))
    return Target(given.topic, spec, make, found is not None)


def _of_table(path: Path, columns: tuple[str, ...] | None, wishes: Wishes) -> Wishes:
    """What a topic is to be that does not exist yet, by its first file and the flags. Raises ConfigError: no rate."""
    from pipeline import sensor
    from pipeline.errors import ConfigError

    table = sensor.read_table(path, columns)
    rate_hz = wishes.rate_hz or (1 / table.step_s if table.step_s else None)
    if rate_hz is None:
        raise ConfigError(f"{path}: does not tell how many rows are a second; say --rate: 50, or 1/3600 if hourly")
    return Wishes(rate_hz, wishes.channels or len(table.columns), wishes.sample_type or "float32")
