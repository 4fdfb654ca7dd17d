"""Settings: flags over environment (`STATEBELT_...`) over `statebelt.toml` over the defaults here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from pipeline.admission import Policy
from pipeline.chunk import MAX_CHUNK_BYTES
from pipeline.errors import ConfigError

SETTINGS_FILE = "statebelt.toml"
DATA_DIR = Path(".statebelt/redis")
"""Where `statebelt redis` keeps its data unless told otherwise, below the folder it is started in."""

Milliseconds = Annotated[int, Field(gt=0, le=2**40)]


class Settings(BaseSettings):
    """All that can be set. Every field is also an environment variable and a key of `statebelt.toml`."""

    model_config = SettingsConfigDict(env_prefix="STATEBELT_", extra="forbid", frozen=True, populate_by_name=True)

    url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("STATEBELT_URL", "REDIS_URL", "url"),
        description="Redis: redis://, rediss:// or unix://; by default the embedded server of this folder",
    )
    topic: str = Field(default="audio", description="the named set of streams")
    group: str = Field(default="digits", description="the deployment of one bundle on a topic")
    bundle: str = Field(default="digits", description="path of a bundle, or the name of a shipped one")
    partitions: int = Field(default=4, ge=1, le=1024, description="of a topic that is created")
    lease_ms: Milliseconds = Field(default=10_000, description="after which a silent worker's partitions are free")
    idle_ms: Milliseconds = Field(default=3_600_000, description="log time after which a silent stream's state expires")
    tombstone_ms: Milliseconds = Field(default=600_000, description="log time for which late resends are recognised")
    outage_ms: Milliseconds = Field(default=86_400_000, description="for which state outlives the last worker")
    durability: Literal["fast", "durable", "replicated"] = Field(
        default="fast", description="what an acknowledged write survives; the server must be set up for it"
    )
    drain_ms: Milliseconds = Field(default=5_000, description="in which a worker that was told to stop must be done")
    on_gap: Literal["restart", "continue"] = Field(default="restart", description="what missing chunks do to a stream")
    publish: Literal["events", "chunks"] = Field(
        default="events", description="a result entry for chunks with something to say, or for every chunk"
    )
    read_entries: int = Field(default=256, ge=1, le=10_000, description="chunks of one read, at most")
    max_batch: int = Field(default=64, ge=1, le=4096, description="streams in one model step, at most")
    belt_rows: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="rows of carried state kept in memory; default: what 64 MiB hold, 4,096 to 65,536",
    )
    row_every_chunks: int = Field(
        default=1, ge=1, le=100_000, description="of a stream, between two commits of its row; more: a takeover replays"
    )
    max_chunk_bytes: int = Field(default=MAX_CHUNK_BYTES, ge=1, le=2**29, description="of one chunk's data")
    max_backlog: int = Field(default=10_000, ge=1, description="unread chunks of a partition a producer tolerates")
    input_retention_ms: Milliseconds = Field(default=60_000, description="chunks are kept at least so long")
    results_retention_ms: Milliseconds = Field(default=86_400_000, description="results and dead letters are kept so")
    trim_every_ms: Milliseconds = Field(default=1_000, description="between two trims of a partition's logs")
    status_dir: Path | None = Field(
        default=None, description="where a worker tells probes how it goes; by default a folder of this user in /tmp"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = Field(default="auto", description="auto: console on a terminal")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _file())

    @property
    def redis_url(self) -> str:
        """The server to use: the one that was set, or the embedded one of this folder."""
        from pipeline.broker.embedded import url_of  # redis is imported only where it is used

        return self.url or url_of(DATA_DIR)

    @property
    def status_folder(self) -> Path:
        """Where workers tell probes of this machine how they go."""
        from pipeline.status import default_folder

        return self.status_dir or default_folder()

    @property
    def replicas(self) -> int:
        """Replicas that must have a write before it counts as done."""
        return 1 if self.durability == "replicated" else 0

    @property
    def policy(self) -> Policy:
        """What the settings say of gaps, idleness and ends."""
        return Policy(
            idle_ms=self.idle_ms, tombstone_ms=self.tombstone_ms, outage_ms=self.outage_ms, on_gap=self.on_gap
        )


def _file() -> Path:
    return Path(os.environ.get("STATEBELT_CONFIG", SETTINGS_FILE))


def load_settings(**flags: object) -> Settings:
    """The settings in force; flags that are None were not given. Raises ConfigError naming each at fault."""
    given = {name: value for name, value in flags.items() if value is not None}
    if "STATEBELT_CONFIG" in os.environ and not _file().is_file():
        raise ConfigError(f"settings: STATEBELT_CONFIG names {str(_file())!r}, which is no file")
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']} (got {str(item['input'])[:80]!r})"
            for item in error.errors()
        )
        raise ConfigError(f"settings: {faults}. They come from flags, STATEBELT_* and {_file()}") from None
    except ValueError as error:  # a settings file that is not TOML
        raise ConfigError(f"settings: {_file()} cannot be read: {error}") from None
