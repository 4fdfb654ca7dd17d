"""Where a setting comes from, and what becomes of a wrong one."""

from __future__ import annotations

import os
from pathlib import Path

import pydantic
import pytest

from pipeline.errors import ConfigError
from pipeline.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and none of our variables."""
    for name in [name for name in os.environ if name.startswith("STATEBELT_") or name == "REDIS_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_flags_over_environment_over_file_over_defaults(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load_settings().topic, load_settings().partitions) == ("audio", 4)
    (here / "statebelt.toml").write_text('topic = "file"\npartitions = 7\nlease_ms = 1234\n')
    assert (load_settings().topic, load_settings().partitions, load_settings().lease_ms) == ("file", 7, 1234)
    monkeypatch.setenv("STATEBELT_TOPIC", "environment")
    monkeypatch.setenv("STATEBELT_PARTITIONS", "8")
    assert (load_settings().topic, load_settings().partitions, load_settings().lease_ms) == ("environment", 8, 1234)
    found = load_settings(topic="flag", lease_ms=None)
    assert (found.topic, found.partitions, found.lease_ms) == ("flag", 8, 1234)


def test_the_url_and_its_alias(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = load_settings().redis_url
    assert embedded.startswith("unix://")
    assert str(here) in embedded
    (here / "statebelt.toml").write_text('url = "redis://file"')
    assert load_settings().redis_url == "redis://file"
    monkeypatch.setenv("REDIS_URL", "redis://alias")
    assert load_settings().redis_url == "redis://alias"
    monkeypatch.setenv("STATEBELT_URL", "redis://environment")
    assert load_settings().redis_url == "redis://environment"
    assert load_settings(url="redis://flag").redis_url == "redis://flag"


def test_a_file_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "statebelt.toml").write_text('topic = "near"')
    (here / "other.toml").write_text('topic = "other"')
    monkeypatch.setenv("STATEBELT_CONFIG", str(here / "other.toml"))
    assert load_settings().topic == "other"


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_was_named_must_be_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEBELT_CONFIG", name)
    with pytest.raises(ConfigError, match=rf"STATEBELT_CONFIG names '{name}'"):
        load_settings()


WRONG: list[tuple[str, object]] = [
    ("partitions", 0), ("partitions", 1025), ("partitions", "many"), ("lease_ms", 0), ("idle_ms", -1),
    ("on_gap", "ignore"), ("publish", "all"), ("read_entries", 0), ("max_batch", 0), ("belt_rows", 0),
    ("max_chunk_bytes", 2**30), ("max_backlog", 0), ("log_level", "loud"), ("log_format", "xml"), ("colour", "red"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_flag_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings(**{field: value})
    assert f"settings: {field}: " in str(raised.value)
    assert f"(got '{value}')" in str(raised.value)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATEBELT_LEASE_MS", "soon")
    monkeypatch.setenv("STATEBELT_ON_GAP", "ignore")
    with pytest.raises(ConfigError, match=r"lease_ms: .*\(got 'soon'\); on_gap: .*\(got 'ignore'\)"):
        load_settings()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"topic = = 1", "mine.toml cannot be read: Invalid value"),
        (b"topic", "mine.toml cannot be read"),
        (b"\xff\xfe", "mine.toml cannot be read"),
        (b"colour = 'red'", r"colour: .*mine\.toml"),
        (b"[redis]\nurl = 'x'", r"redis: .*mine\.toml"),
        (b"partitions = 'many'", r"partitions: .*\(got 'many'\).*mine\.toml"),
    ],
)
def test_a_broken_file(here: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str) -> None:
    (here / "mine.toml").write_bytes(content)
    monkeypatch.setenv("STATEBELT_CONFIG", "mine.toml")
    with pytest.raises(ConfigError, match=words):
        load_settings()


def test_frozen_and_the_policy() -> None:
    found = load_settings(idle_ms=5, tombstone_ms=6, on_gap="continue")
    assert found.policy.outage_ms == 86_400_000
    assert (found.policy.idle_ms, found.policy.tombstone_ms, found.policy.on_gap) == (5, 6, "continue")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        found.topic = "other"  # type: ignore[misc]


def test_every_field_can_be_set_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, field in Settings.model_fields.items():
        value = {
            "url": "redis://x",
            "on_gap": "continue",
            "durability": "durable",
            "publish": "chunks",
            "log_level": "error",
        }.get(name)
        value = value or {"log_format": "json", "topic": "t", "group": "g", "bundle": "b"}.get(name) or "17"
        assert str(field.default) != value
        monkeypatch.setenv(f"STATEBELT_{name.upper()}", value)
        assert str(getattr(load_settings(), name)) == value
