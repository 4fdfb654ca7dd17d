"""`statebelt push`: what is looked at before anything is sent, and going on where a stream stands."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import redis

from pipeline.broker.keys import log_key, partition_of
from pipeline.broker.topic import describe
from pipeline.offline import run
from tests import zoo
from tests.harness import make_producer, worker
from tests.unit.test_cli import SPOKEN, recording, statebelt
from tests.unit.test_cli_redis import _quiet, results  # noqa: F401

BUNDLE = zoo.bundle("audio")
SAMPLES = zoo.signal(BUNDLE.manifest.input, 9600)


def raw(samples: np.ndarray) -> bytes:
    return samples.astype("<i2").tobytes()


def flat(text: str) -> str:
    """As it was said, before lines were broken."""
    return " ".join(text.split())


def pushed(client: redis.Redis, stream: str) -> list[tuple[bytes, bool]]:
    entries = client.xrange(log_key("audio", partition_of(stream, 4)))
    return [(fields[b"data"], b"end" in fields) for _, fields in entries if fields[b"stream"] == stream.encode()]


class TestNothingToPush:
    """Nothing is made for it: a topic by a name mistyped would stand there for ever."""

    def test_no_readable_file(self, url: str, tmp_path: Path, redis_client: redis.Redis) -> None:
        (tmp_path / "README.md").write_text("# text\n" * 50)
        for flags in ((), ("--pace", "realtime"), ("--resume",), ("--json",)):
            _, err = statebelt("push", tmp_path / "README.md", "--topic", "new", "--url", url, *flags, code=2)
            assert "README.md: not a recording" in err
        assert redis_client.keys("*") == []

    @pytest.mark.parametrize("name", ["{", "", "x" * 201])
    def test_a_stream_name_that_is_none(self, url: str, tmp_path: Path, redis_client: redis.Redis, name: str) -> None:
        path = recording(tmp_path / "x.wav", 0.1)
        for source in (path, "-"):
            _, err = statebelt("push", source, "--topic", "new", "--stream", name, "--url", url, stdin=b"00", code=2)
            assert "expected 1 to 200 bytes of text" in err
        assert redis_client.keys("*") == []

    def test_a_file_whose_name_is_too_long_for_a_stream(self, url: str, tmp_path: Path) -> None:
        path = recording(tmp_path / f"{'x' * 240}.wav", 0.1)
        _, err = statebelt("push", path, "--url", url, code=2)
        assert "has 240 characters" in err
        statebelt("push", path, "--stream", "x", "--url", url)

    def test_a_description_that_no_topic_can_have(self, url: str, tmp_path: Path, redis_client: redis.Redis) -> None:
        path = recording(tmp_path / "x.wav", 0.1)
        _, err = statebelt("push", path, "--rate", 2e6, "--url", url, code=2)
        assert "sample_rate_hz 2000000" in err
        assert redis_client.keys("*") == []

    def test_a_file_that_comes_after_unreadable_ones(self, url: str, tmp_path: Path, redis_client: redis.Redis) -> None:
        for i in range(65):  # more than are read at once
            (tmp_path / f"{i:03}.wav").write_bytes(b"nothing")
        recording(tmp_path / "good.wav", 0.2)
        out, _ = statebelt("push", tmp_path, "--topic", "new", "--url", url, code=2)
        assert "pushed 1 recording, 0.2 s of signal" in flat(out)
        assert describe(redis_client, "new") is not None

    def test_no_standard_input(self, url: str, redis_client: redis.Redis) -> None:
        """As the command before the pipe leaves it when it fails."""
        _, err = statebelt("push", "-", "--topic", "new", "--url", url, stdin=b"", code=2)
        assert "standard input held nothing" in err
        assert redis_client.keys("*") == []
        make_producer(url, BUNDLE).close()
        statebelt("push", "-", "--url", url, stdin=b"")  # ends the stream of a topic that is there
        assert pushed(redis_client, "stdin") == [(b"", True)]


class TestEncoded:
    """A recording's bytes would pass for loud noise."""

    @pytest.mark.parametrize(
        ("head", "kind"),
        [
            (SPOKEN.read_bytes()[:4000], "FLAC"),
            (b"RIFF\x24\x08\x00\x00WAVEfmt " + bytes(3000), "WAV"),
            (b"OggS\x00\x02" + bytes(3000), "Ogg"),
            (b"ID3\x04\x00" + bytes(3000), "MP3"),
            (b"\xff\xfb\x90\x64" + bytes(32) + b"Info" + bytes(3000), "MP3"),
            (b"\x00\x00\x00\x20ftypM4A " + bytes(3000), "MP4"),
            (b"PK\x03\x04" + bytes(3000), "npz"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    @pytest.mark.parametrize("there", [False, True], ids=["new topic", "topic there"])
    def test_it_is_refused_with_the_remedy(
        self, url: str, redis_client: redis.Redis, head: bytes, kind: str, there: bool
    ) -> None:
        if there:
            make_producer(url, BUNDLE).close()
        keys = redis_client.keys("*")
        _, err = statebelt("push", "-", "--url", url, stdin=head, code=2)
        said = flat(err)
        assert f"standard input is {kind}" in said
        assert "Push the file itself" in said
        assert ("ffmpeg -i FILE -f s16le -ac 1 -ar " + ("16000" if there else "8000") in said) == (kind != "npz")
        assert redis_client.keys("*") == keys

    def test_sound_that_is_loud_at_once_passes(self, url: str, redis_client: redis.Redis) -> None:
        data = b"\xff\xfb\x90\x64" + bytes(3000)  # an MP3's sync word is a quiet sample too
        statebelt("push", "-", "--url", url, stdin=data)
        assert b"".join(part for part, _ in pushed(redis_client, "stdin")) == data


class TestResume:
    def test_a_finished_file_is_said_to_be_stored(self, url: str, tmp_path: Path) -> None:
        for name in "ab":
            recording(tmp_path / f"{name}.wav", 0.2)
        statebelt("push", tmp_path, "--url", url)
        out, _ = statebelt("push", tmp_path, "--resume", "--url", url)
        assert "pushed 0 recordings" in flat(out)
        assert "; 2 were already stored to their end" in flat(out)
        recording(tmp_path / "c.wav", 0.2)
        out, _ = statebelt("push", tmp_path / "a.wav", tmp_path / "c.wav", "--resume", "--url", url)
        assert "pushed 1 recording, 0.2 s" in flat(out)
        assert "; 1 was already stored to its end" in flat(out)

    def test_a_stream_that_ended_before_its_file_does(
        self, url: str, tmp_path: Path, redis_client: redis.Redis
    ) -> None:
        short, long = recording(tmp_path / "short.wav", 0.2), recording(tmp_path / "long.wav", 0.5)
        push = ("push", "--stream", "s", "--url", url)
        statebelt(*push, short)
        before = pushed(redis_client, "s")
        out, err = statebelt(*push, long, "--resume")
        assert "stream 's' has ended with 0.20 of the 0.50 s" in err
        assert "stored to its end" not in flat(out)
        assert pushed(redis_client, "s") == before

    @pytest.mark.parametrize("stored", [0, 1, 1600, 5000, 9600])
    def test_the_same_signal_piped_again(self, url: str, stored: int) -> None:
        """As for a file: what the stream holds of it is passed over, so the results are those of the whole."""
        with worker(url, BUNDLE):
            with make_producer(url, BUNDLE) as died:
                if stored:
                    died.push("mic", SAMPLES[:stored])
            out, err = statebelt("push", "-", "--stream", "mic", "--resume", "--json", "--url", url, stdin=raw(SAMPLES))
            told = json.loads(out)
            assert told["seconds"] == (9600 - stored) / 16_000
            assert told.get("from_s", 0) == stored / 16_000
            assert ("its first" in err) == (stored > 0)  # who pipes a microphone is to know
            tail = ("tail", "--from-beginning", "--until-end", "--stream", "mic", "--json", "--url", url)
            lines = statebelt(*tail)[0]
        assert results(lines)["mic"] == [asdict(event) for event in run(BUNDLE, SAMPLES).events]
        assert not any(json.loads(line)["notes"] for line in lines.splitlines())

    def test_a_pipe_that_was_pushed_to_its_end(self, url: str, redis_client: redis.Redis) -> None:
        push = ("push", "-", "--rate", 16_000, "--url", url)
        statebelt(*push, stdin=raw(SAMPLES))
        before = pushed(redis_client, "stdin")
        out, _ = statebelt(*push, "--resume", stdin=raw(SAMPLES))
        assert "pushed 0.0 s of signal" in flat(out)
        assert "already stored to its end" in flat(out)
        assert pushed(redis_client, "stdin") == before

    @pytest.mark.parametrize(
        ("again", "flags", "message"),
        [
            (5000, ("--no-end",), "holds 0.60 s, but standard input had only 0.31 s"),
            (9601, (), "has ended after 0.60 s, but standard input goes on"),
        ],
    )
    def test_another_signal(
        self, url: str, redis_client: redis.Redis, again: int, flags: tuple[str, ...], message: str
    ) -> None:
        push = ("push", "-", "--rate", 16_000, "--url", url)
        statebelt(*push, *flags, stdin=raw(SAMPLES))
        before = pushed(redis_client, "stdin")
        other = np.zeros(again, np.int16)
        _, err = statebelt(*push, "--resume", stdin=raw(other), code=2)
        assert message in flat(err)
        assert "leave out --resume" in flat(err)
        assert pushed(redis_client, "stdin") == before
