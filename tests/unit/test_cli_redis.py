"""The command line on a real server, with real workers."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import redis
import structlog

from pipeline import audio
from pipeline.broker.connection import connect
from pipeline.broker.embedded import EmbeddedServer
from pipeline.broker.keys import log_key, partition_of
from pipeline.broker.topic import describe
from pipeline.errors import ConfigError
from pipeline.offline import run
from tests import zoo
from tests.harness import WorkerProcess, make_producer, until, worker
from tests.unit.test_cli import recording, statebelt


@contextmanager
def started(*arguments: object, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """`statebelt ...` in a process of its own, that is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *(str(argument) for argument in arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def lines_until(stream: IO[str] | None, text: str) -> list[str]:
    """Lines of a process, up to the one that holds `text`."""
    assert stream is not None
    found = []
    for line in stream:
        found.append(line.rstrip("\n"))
        if text in line:
            return found
    raise AssertionError(f"{text!r} did not come; what came: {found}")


def expected(path: Path) -> list[dict[str, object]]:
    """What `statebelt run` says of a recording."""
    bundle = zoo.bundle("audio")
    return [asdict(event) for event in run(bundle, audio.read(path, bundle.manifest.input)).events]


def results(out: str) -> dict[str, list[dict[str, object]]]:
    """The events in the lines of `tail --json`, by stream."""
    found: dict[str, list[dict[str, object]]] = {}
    for line in map(json.loads, out.splitlines()):
        found.setdefault(line["stream"], []).extend(line["events"])
    return found


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The logs of workers in this process stay off its standard output, which is under test."""
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(io.StringIO()))
    yield
    structlog.reset_defaults()


class TestPushAndTail:
    @pytest.mark.parametrize("flags", [(), ("--chunk-ms", "7"), ("--pace", "realtime")], ids=" ".join)
    def test_what_is_pushed_is_heard(self, url: str, tmp_path: Path, flags: tuple[str, ...]) -> None:
        paths = [recording(tmp_path / "a" / "x.wav", 0.8), recording(tmp_path / "b" / "x.flac", 0.5, seed=1)]
        with worker(url, zoo.bundle("audio")):
            out, _ = statebelt("push", tmp_path, "--rate", 16_000, "--url", url, "--json", *flags)
            pushed = {line["stream"]: line for line in map(json.loads, out.splitlines())}
            assert list(pushed) == ["a/x", "b/x"]
            for name, path, seconds in zip(pushed, paths, (0.8, 0.5), strict=True):
                assert pushed[name]["file"] == str(path)
                assert pushed[name]["seconds"] == seconds
                tail = ("tail", "--stream", name, "--from-beginning", "--until-end", "--url", url)
                out, _ = statebelt(*tail, "--json")
                lines = [json.loads(line) for line in out.splitlines()]
                assert [line["end"] for line in lines] == [False] * (len(lines) - 1) + [True]
                assert lines[-1]["seq"] == pushed[name]["last_seq"]
                assert results(out)[name] == expected(path)
                shown, _ = statebelt(*tail)
                assert shown.count("class_") == len(expected(path))
                assert shown.rstrip().endswith("end")

    def test_real_time_takes_its_time_for_all_files_at_once(self, url: str, tmp_path: Path) -> None:
        for i in range(4):
            recording(tmp_path / f"{i}.wav", 0.6, seed=i)
        began_s = time.monotonic()
        out, _ = statebelt("push", tmp_path, "--pace", "realtime", "--rate", 16_000, "--url", url)
        took_s = time.monotonic() - began_s
        assert 0.6 <= took_s < 2.4
        assert "pushed 4 recordings, 2.4 s of signal" in out

    def test_the_same_file_again_is_a_new_stream(self, url: str, tmp_path: Path) -> None:
        path = recording(tmp_path / "x.wav", 0.6)
        with worker(url, zoo.bundle("audio")):
            for _ in range(2):
                statebelt("push", path, "--rate", 16_000, "--url", url)
            until(lambda: len(self.ends(url)) == 2, "two ends")
        out, _ = statebelt("tail", "--from-beginning", "--seconds", 0.1, "--json", "--url", url)
        assert results(out)["x"] == 2 * expected(path)

    @staticmethod
    def ends(url: str) -> list[str]:
        out, _ = statebelt("tail", "--from-beginning", "--seconds", 0.05, "--json", "--url", url)
        return [line for line in out.splitlines() if json.loads(line)["end"]]

    def test_no_end(self, url: str, tmp_path: Path, redis_client: redis.Redis) -> None:
        path = recording(tmp_path / "x.wav", 0.3)
        statebelt("push", path, "--rate", 16_000, "--stream", "mic", "--no-end", "--url", url)
        entries = redis_client.xrange(log_key("audio", partition_of("mic", 4)))
        assert len(entries) == 3
        assert not any(b"end" in fields and fields[b"end"] == b"1" for _, fields in entries)

    def test_resume_pushes_what_is_missing(self, url: str, tmp_path: Path) -> None:
        """One was cut off, one was pushed whole, one not at all: the results are those of the recordings."""
        paths = [recording(tmp_path / f"{name}.wav", 0.6, seed=i) for i, name in enumerate(("cut", "new", "whole"))]
        bundle = zoo.bundle("audio")
        signals = [audio.read(path, bundle.manifest.input) for path in paths]
        with worker(url, bundle):
            with make_producer(url, bundle) as died:
                died.push("cut", signals[0][:3500])
                died.push("whole", signals[2], end=True)
            out, _ = statebelt("push", tmp_path, "--resume", "--json", "--url", url)
            told = {line["stream"]: line for line in map(json.loads, out.splitlines())}
            assert {name: line["seconds"] for name, line in told.items()} == {
                "cut": (9600 - 3500) / 16_000,
                "new": 0.6,
                "whole": 0.0,
            }
            assert told["cut"]["from_s"] == 3500 / 16_000
            for name, path in zip(("cut", "new", "whole"), paths, strict=True):
                tail = ("tail", "--stream", name, "--from-beginning", "--until-end", "--json", "--url", url)
                out, _ = statebelt(*tail)
                assert results(out)[name] == expected(path)
                assert not any(json.loads(line)["notes"] for line in out.splitlines())
        out, _ = statebelt("push", tmp_path, "--resume", "--url", url)
        assert "pushed 0 recordings, 0.0 s of signal" in out
        out, _ = statebelt("push", tmp_path, "--resume", "--json", "--url", url)
        lines = [json.loads(line) for line in out.splitlines()]
        assert [(line["stream"], line["seconds"], line["chunks"], line["from_s"]) for line in lines] == [
            (name, 0.0, 0, 0.6) for name in ("cut", "new", "whole")
        ]

    def test_what_is_given_reaches_its_stream(self, url: str, tmp_path: Path) -> None:
        """From a file, with raw frames on standard input; and in `run`, which takes the same file."""
        bundle = zoo.bundle("given")
        spec, values = bundle.manifest.input, np.arange(8, dtype=np.float32)
        np.save(tmp_path / "v.npy", values)
        samples = zoo.signal(spec, 30)
        with worker(url, bundle):
            make_producer(url, bundle).close()
            statebelt("push", "-", "--given", tmp_path / "v.npy", "--url", url, stdin=samples.tobytes())
            out, _ = statebelt("tail", "--from-beginning", "--until-end", "--stream", "stdin", "--json", "--url", url)
        found = np.array([row for line in out.splitlines() for row in json.loads(line).get("scores", [])], np.float32)
        assert found.tobytes() == bundle.forward(samples, values).scores.tobytes()
        np.save(tmp_path / "text.npy", np.array(["x"]))
        np.save(tmp_path / "nan.npy", np.array([np.nan]))
        (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
        for name in ("text.npy", "nan.npy", "cut.npy", "absent.npy"):
            _, err = statebelt("push", "-", "--given", tmp_path / name, "--url", url, stdin=b"", code=2)
            assert "--given" in err

    def test_resume_of_another_recording_is_told(self, url: str, tmp_path: Path) -> None:
        long, short = recording(tmp_path / "long.wav", 0.5), recording(tmp_path / "short.wav", 0.3)
        push = ("push", "--stream", "s", "--rate", 16_000, "--url", url)
        statebelt(*push, long, "--no-end")
        _, err = statebelt(*push, short, "--resume", code=2)
        assert "holds 0.50 s" in err
        assert "has only 0.30 s" in err

    def test_a_topic_is_made_once_and_then_obeyed(self, url: str, tmp_path: Path, redis_client: redis.Redis) -> None:
        path = recording(tmp_path / "x.wav", 0.3)
        statebelt("push", path, "--topic", "calls", "--url", url)
        topic = describe(redis_client, "calls")
        assert topic is not None
        assert (topic.sample_rate_hz, topic.sample_type, topic.channels) == (8000, "int16", 1)
        statebelt("push", path, "--topic", "calls", "--url", url)
        _, err = statebelt("push", path, "--topic", "calls", "--rate", 16_000, "--url", url, code=2)
        assert "sample_rate_hz is 8000.0 there and 16000.0 here" in err

    def test_an_unreadable_file_among_others(self, url: str, tmp_path: Path) -> None:
        (tmp_path / "broken.wav").write_bytes(b"nothing")
        good = recording(tmp_path / "good.wav", 0.2)
        out, err = statebelt("push", tmp_path / "broken.wav", good, "--json", "--url", url, code=2)
        assert [json.loads(line)["stream"] for line in out.splitlines()] == ["good"]
        assert "broken.wav: not a recording that libsndfile can read" in err

    def test_one_name_for_two_files(self, url: str, tmp_path: Path) -> None:
        paths = [recording(tmp_path / f"{i}.wav", 0.1) for i in range(2)]
        _, err = statebelt("push", *paths, "--stream", "x", "--url", url, code=2)
        assert "--stream names one stream, but there are 2 recordings" in err

    def test_a_name_that_is_none(self, url: str, tmp_path: Path) -> None:
        _, err = statebelt("push", recording(tmp_path / "x.wav", 0.1), "--stream", "a{b}", "--url", url, code=2)
        assert "stream name 'a{b}' contains '{'" in err

    def test_raw_pcm_on_standard_input(self, url: str, tmp_path: Path) -> None:
        path = recording(tmp_path / "x.wav", 0.7)
        raw = audio.read(path, zoo.bundle("audio").manifest.input).astype("<i2").tobytes()
        with worker(url, zoo.bundle("audio")):
            push = ("push", "-", "--rate", 16_000, "--url", url, "--chunk-ms", 30)
            out, _ = statebelt(*push, "--stream", "mic", "--json", stdin=raw)
            assert json.loads(out)["seconds"] == 0.7
            out, _ = statebelt(*push, "--pace", "realtime", stdin=raw)
            assert "pushed 0.7 s of signal to stream 'stdin'" in out
            for name in ("mic", "stdin"):
                tail = ("tail", "--stream", name, "--from-beginning", "--until-end", "--json", "--url", url)
                assert results(statebelt(*tail)[0])[name] == expected(path)

    def test_half_a_sample_on_standard_input(self, url: str) -> None:
        with worker(url, zoo.bundle("audio")):
            _, err = statebelt("push", "-", "--rate", 16_000, "--url", url, stdin=b"\0" * 3201, code=2)
            assert "standard input ended within a sample: 1 of 2 bytes" in err
            tail = ("tail", "--stream", "stdin", "--from-beginning", "--until-end", "--url", url)
            assert "end" in statebelt(*tail)[0]

    def test_scores_and_notes_are_told(self, url: str, redis_client: redis.Redis) -> None:
        bundle = zoo.bundle("sensor")
        samples = zoo.signal(bundle.manifest.input, 20)
        with worker(url, bundle), make_producer(url, bundle) as producer:
            producer.push("pump", samples)
            partition = partition_of("pump", producer.partitions)
            redis_client.xadd(  # a chunk from nowhere: a gap
                log_key("audio", partition), {"stream": "pump", "seq": 2**60, "data": samples.tobytes(), "end": "1"}
            )
            tail = ("tail", "--stream", "pump", "--from-beginning", "--until-end", "--url", url)
            shown, _ = statebelt(*tail)
            out, _ = statebelt(*tail, "--json")
        last = run(bundle, samples).scores[-1]
        assert f"20 frames of scores, the last one {last[0]:.4g} " in shown
        assert "gap expected_seq" in shown
        lines = [json.loads(line) for line in out.splitlines()]
        assert np.array_equal(np.array(lines[0]["scores"], np.float32), run(bundle, samples).scores)
        assert [note["kind"] for line in lines for note in line["notes"]] == ["gap"]

    def test_tail_of_no_topic(self, url: str) -> None:
        _, err = statebelt("tail", "--topic", "calls", "--url", url, code=2)
        assert "there is no topic 'calls'" in err

    def test_a_stream_that_does_not_end_in_time(self, url: str, tmp_path: Path) -> None:
        """A script is to know: the exit status tells. Without --until-end, time is all that was asked for."""
        path = recording(tmp_path / "x.wav", 0.3)
        tail = ("tail", "--stream", "x", "--from-beginning", "--url", url)
        with worker(url, zoo.bundle("audio")):
            statebelt("push", path, "--rate", 16_000, "--no-end", "--url", url)
            _, err = statebelt(*tail, "--until-end", "--seconds", 0.3, "--json", code=1)
            assert "error: stream 'x' has not ended within 0.3 s" in err
            assert statebelt(*tail, "--seconds", 0.1)[1] == ""
            statebelt("push", path, "--resume", "--url", url)
            assert statebelt(*tail, "--until-end", "--seconds", 30)[1] == ""

    def test_a_group_that_nobody_works_under_is_told_once_and_waited_for(self, url: str, tmp_path: Path) -> None:
        path = recording(tmp_path / "x.wav", 0.3)
        tail = ("tail", "--from-beginning", "--json", "--url", url)
        statebelt("push", path, "--rate", 16_000, "--url", url)
        _, err = statebelt(*tail, "--seconds", 0.1)
        assert err.startswith("warning: no group 'digits' works on topic 'audio'; there are: none yet. Waiting for")
        with worker(url, zoo.bundle("audio"), group="digits") as running:
            until(lambda: len(running.owned) > 0, "the group")
            _, err = statebelt(*tail, "--seconds", 1.2, "--group", "digit")
            assert err.count("no group 'digit' works on topic 'audio'; there are: digits.") == 1
            assert statebelt(*tail, "--seconds", 0.1)[1] == ""
            with started(*tail, "--group", "late") as process:
                lines_until(process.stderr, "no group 'late'")
                with worker(url, zoo.bundle("audio"), group="late"):
                    assert results("\n".join(lines_until(process.stdout, '"end":true'))) == {"x": expected(path)}

    def test_ctrl_c_ends_tail_without_a_trace(self, url: str, tmp_path: Path) -> None:
        with worker(url, zoo.bundle("audio")):
            statebelt("push", recording(tmp_path / "x.wav", 0.5), "--rate", 16_000, "--url", url)
            with started("tail", "--from-beginning", "--json", "--url", url) as process:
                lines_until(process.stdout, '"end":true')
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=20)
        assert process.returncode == 130
        assert err == ""

    def test_tail_outlives_the_server(self, tmp_path: Path) -> None:
        path = recording(tmp_path / "x.wav", 0.5)
        server = EmbeddedServer(tmp_path / "data").start()
        try:
            with worker(server.url, zoo.bundle("audio"), lease_ms=2000):
                push = ("push", path, "--rate", 16_000, "--url", server.url, "--stream")
                statebelt(*push, "before")
                with started("tail", "--from-beginning", "--json", "--url", server.url) as process:
                    before = lines_until(process.stdout, '"end":true')
                    server.close()
                    lines_until(process.stderr, "Waiting for it; nothing is skipped")
                    server.start()
                    statebelt(*push, "after")
                    after = lines_until(process.stdout, '"end":true')
            assert results("\n".join(before)) == {"before": expected(path)}
            assert results("\n".join(after)) == {"after": expected(path)}
        finally:
            server.close()


class TestTopics:
    def test_none_yet(self, url: str) -> None:
        assert "no topics yet" in statebelt("topics", "--url", url)[0]
        assert statebelt("topics", "--url", url, "--json")[0] == ""

    def test_owners_lag_streams_and_dead_letters(self, url: str, tmp_path: Path, redis_client: redis.Redis) -> None:
        path = recording(tmp_path / "x.wav", 0.5)
        statebelt("push", path, "--rate", 16_000, "--url", url)
        assert "none" in statebelt("topics", "--url", url)[0]
        mine = partition_of("x", 4)
        redis_client.xadd(log_key("audio", mine), {"stream": "x", "seq": "one", "data": b""})
        with worker(url, zoo.bundle("audio"), group="g") as made:
            statebelt("tail", "--group", "g", "--stream", "x", "--from-beginning", "--until-end", "--url", url)

            def group() -> dict[str, object]:
                told = json.loads(statebelt("topics", "--url", url, "--json")[0])
                (found,) = told["partitions"][mine]["groups"]
                assert isinstance(found, dict)
                return found

            until(lambda: group()["dead"] == 1, "a dead letter")
            found = group()
            assert found["owner"] == made.owner
            assert (found["group"], found["lag"], found["streams"]) == ("g", 0, 1)
            shown, _ = statebelt("topics", "--url", url)
            assert "16000 Hz, 1 x int16, 4 partitions" in shown
        assert group()["owner"] is None
        assert "nobody" in statebelt("topics", "--url", url)[0]


class TestWorker:
    def test_sigterm_ends_it_well(self, url: str, tmp_path: Path) -> None:
        (tmp_path / "audio.onnx").write_bytes(zoo.audio())
        with WorkerProcess(url, tmp_path / "audio.onnx", tmp_path) as process:
            process.wait_for("ready")
            process.send(signal.SIGTERM)
            assert process.process.wait(20) == 0
            assert process.events()[-1]["event"] == "stopped"

    def test_flags_stand_above_variables(self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "audio.onnx").write_bytes(zoo.audio())
        monkeypatch.setenv("STATEBELT_BUNDLE", "nothing")
        monkeypatch.setenv("STATEBELT_TOPIC", "from-the-environment")
        flags = ("--bundle", tmp_path / "audio.onnx", "--url", url, "--partitions", 2, "--log-format", "json")
        with started("worker", *flags) as process:
            told = json.loads(lines_until(process.stderr, '"ready"')[-1])
        assert told["topic"] == "from-the-environment"
        assert told["owned"] == [0, 1]

    def test_a_topic_of_another_rate(self, url: str) -> None:
        make_producer(url, zoo.bundle("audio")).close()
        _, err = statebelt("worker", "--bundle", "digits", "--url", url, code=2)
        assert "sample_rate_hz is 16000.0 there and 8000.0 here" in err

    def test_a_bundle_that_is_none(self, url: str, tmp_path: Path) -> None:
        (tmp_path / "x.onnx").write_bytes(b"no")
        _, err = statebelt("worker", "--bundle", tmp_path / "x.onnx", "--url", url, code=2)
        assert "no ONNX model" in err


class TestServer:
    def test_in_this_folder_it_is_found_without_a_url(self, tmp_path: Path) -> None:
        with started("redis", cwd=tmp_path) as process:
            told = lines_until(process.stdout, "statebelt push FILE")
            assert "unix://" in told[0]
            with started("topics", cwd=tmp_path) as topics:
                out, err = topics.communicate(timeout=20)
                assert "no topics yet" in out, err
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0

    def test_its_data_stays(self, tmp_path: Path) -> None:
        flags = ("--data", tmp_path / "d", "--fsync", "always")
        for number in range(2):
            with started("redis", *flags) as process:
                told = "\n".join(lines_until(process.stdout, "statebelt push FILE"))
                url = told.split()[1]
                assert f"export REDIS_URL='{url}'" in told
                with connect(url) as client:
                    assert client.incr("lives") == number + 1
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 0

    @pytest.mark.parametrize(
        ("data", "why"), [("file", "File exists"), ("file/x", "Not a directory"), ("x" * 300, "File name too long")]
    )
    def test_a_folder_that_cannot_be_one(self, tmp_path: Path, data: str, why: str) -> None:
        (tmp_path / "file").write_bytes(b"a letter")
        _, err = statebelt("redis", "--data", tmp_path / data, code=2)
        assert f"{tmp_path / data} cannot hold a server's data ({why}" in err
        assert (tmp_path / "file").read_bytes() == b"a letter"

    def test_a_port_that_somebody_has_and_one_that_there_is_not(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            _, err = statebelt("redis", "--data", tmp_path, "--port", port, code=2)
        assert err == (
            f"error: port {port} of 127.0.0.1 cannot be had (another program listens there): choose another one\n"
        )
        for wrong in (99999, -1):
            assert "Invalid value for '--port'" in statebelt("redis", "--data", tmp_path, "--port", wrong, code=2)[1]
        with pytest.raises(ConfigError, match="port 99999: there are 1 to 65535"):
            EmbeddedServer(tmp_path, port=99999).start()

    def test_a_folder_in_use(self, tmp_path: Path) -> None:
        with EmbeddedServer(tmp_path):
            _, err = statebelt("redis", "--data", tmp_path, code=2)
        assert "is in use by process" in err

    def test_a_server_that_dies_is_told(self, tmp_path: Path) -> None:
        with started("redis", "--data", tmp_path) as process:
            url = lines_until(process.stdout, "ready")[-1].split()[1]
            with connect(url) as client:
                client.shutdown(nosave=True)
            _, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "the server ended by itself; its log:" in err
