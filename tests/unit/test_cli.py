"""The command line without a server: help, bundles, recordings, mistakes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import pytest
import soundfile
from onnx import helper
from typer.testing import CliRunner

from pipeline import audio
from pipeline.bundle import SHIPPED
from pipeline.cli.app import app
from pipeline.cli.playback import Recording, paced, rounds, stream_names
from pipeline.offline import run
from tests import zoo

COMMANDS = (
    *("demo", "redis", "worker", "push", "tail", "topics", "dead", "group", "load-functions", "inspect", "run"),
    "verify",
    *("dead list", "dead show", "dead retry", "dead drop", "group drop"),
)
SPOKEN = SHIPPED.parent / "recordings" / "digits.flac"


def statebelt(*arguments: object, stdin: bytes | None = None, code: int = 0) -> tuple[str, str]:
    """Run a command in this process; its standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == code, f"exit {result.exit_code}: {result.output} {result.exception!r}"
    return result.stdout, result.stderr


@pytest.fixture
def audio_bundle(tmp_path: Path) -> Path:
    path = tmp_path / "audio.onnx"
    path.write_bytes(zoo.audio())
    return path


def recording(path: Path, seconds: float, rate_hz: int = 16_000, seed: int = 0) -> Path:
    """A lively recording on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = zoo.bundle("audio").manifest.input
    soundfile.write(path, zoo.signal(spec, int(seconds * rate_hz), seed)[:, 0], rate_hz, subtype="PCM_16")
    return path


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_teaches_by_example(self, command: str) -> None:
        out, _ = statebelt(*command.split(), "--help")
        assert "Examples" in out
        assert f"statebelt {command}" in out

    def test_no_command_shows_help(self) -> None:
        out, _ = statebelt("--help")
        assert all(command.split()[0] in out for command in COMMANDS)

    def test_help_imports_nothing_heavy(self) -> None:
        heavy = "numpy scipy onnxruntime redis pydantic soundfile"
        code = f"import sys, pipeline.cli.app; print([m for m in {heavy.split()} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_one_thread_a_process(self) -> None:
        code = "import os, sys, pipeline.cli; print(os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["1", "1"]

    def test_the_module_is_the_command(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "inspect", "nothing"], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: no bundle at 'nothing'")


class TestRun:
    def test_json_is_one_exact_line_a_file(self, tmp_path: Path, audio_bundle: Path) -> None:
        a, b = recording(tmp_path / "a.wav", 1.3), recording(tmp_path / "b.flac", 0.7, seed=1)
        out, _ = statebelt("run", audio_bundle, a, b, "--json")
        bundle = zoo.bundle("audio")
        lines = [json.loads(line) for line in out.splitlines()]
        for path, line in zip((a, b), lines, strict=True):
            done = run(bundle, audio.read(path, bundle.manifest.input))
            assert line == {"file": str(path), "seconds": done.seconds, "events": [asdict(e) for e in done.events]}
            assert line["events"]

    @pytest.mark.parametrize("chunk_ms", [7, 20, 100, 0.1])
    def test_chunks_change_no_byte(self, tmp_path: Path, audio_bundle: Path, chunk_ms: float) -> None:
        path = recording(tmp_path / "a.wav", 0.9)
        whole, cut = tmp_path / "whole.npz", tmp_path / "cut.npz"
        out, _ = statebelt("run", audio_bundle, path, "--json", "--scores", whole)
        again, _ = statebelt("run", audio_bundle, path, "--json", "--scores", cut, "--chunk-ms", chunk_ms)
        assert again == out
        assert whole.read_bytes() == cut.read_bytes()

    def test_a_folder_and_people(self, tmp_path: Path, audio_bundle: Path) -> None:
        recording(tmp_path / "in" / "x" / "a.wav", 1.3)
        recording(tmp_path / "in" / "b.ogg.wav", 0.5)
        out, _ = statebelt("run", audio_bundle, tmp_path / "in")
        assert "1.30 s" in out.replace("\n", "")
        assert "class_" in out

    @pytest.mark.parametrize(
        "content",
        [
            b"0.1, 0.2, 0.3\n",
            b"",
            b"\x93NUMPY",
            _npy(np.array([{"a": 1}], object)),
            b"PK\x03\x04 no archive",
            b"\x93NUMPY\x01\x00\x4f\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(
                89
            ),
        ],
        ids=["text", "nothing", "cut off", "objects", "an archive that is none", "petabytes, it says"],
    )
    def test_given_values_that_are_none(self, tmp_path: Path, audio_bundle: Path, content: bytes) -> None:
        (tmp_path / "v.npy").write_bytes(content)
        _, err = statebelt("run", audio_bundle, tmp_path / "a.wav", "--given", tmp_path / "v.npy", code=2)
        assert "v.npy: cannot be read as a .npy file of numbers" in err
        assert "numpy.save(" in err
        assert "pickle" not in err  # numpy advises to load it unsafely

    def test_a_file_of_given_values_that_is_not_there(self, tmp_path: Path, audio_bundle: Path) -> None:
        _, err = statebelt("run", audio_bundle, tmp_path / "a.wav", "--given", tmp_path / "v.npy", code=2)
        assert "v.npy: cannot be read: No such file or directory" in err

    def test_scores_lie_under_the_path_as_given(
        self, tmp_path: Path, audio_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        recording(Path("file.wav"), 0.5).rename("file")
        names = ["file", "sub/x.wav", str(recording(tmp_path / "abs.wav", 0.4)), "./dot.wav"]
        recording(Path("sub/x.wav"), 0.6, seed=1)
        recording(Path("dot.wav"), 0.3, seed=2)
        statebelt("run", audio_bundle, *names, "file", "--scores", "s.npz")
        with np.load("s.npz") as scores:
            assert sorted(scores) == sorted(str(Path(name)) for name in names)
            for name in names:
                bundle = zoo.bundle("audio")
                expected = run(bundle, audio.read(Path(name), bundle.manifest.input)).scores
                assert scores[str(Path(name))].tobytes() == expected.tobytes()

    @pytest.mark.parametrize("link", ["itself", "symbolic", "hard"])
    @pytest.mark.parametrize("read", ["recording", "bundle", "values of --given"])
    def test_scores_overwrite_nothing_that_is_read(
        self, tmp_path: Path, audio_bundle: Path, link: str, read: str
    ) -> None:
        np.save(tmp_path / "v.npy", np.zeros(3, np.float32))
        path = recording(tmp_path / "a.wav", 0.2)
        victim = {"recording": path, "bundle": audio_bundle, "values of --given": tmp_path / "v.npy"}[read]
        before, scores = victim.read_bytes(), victim if link == "itself" else tmp_path / "other"
        if link == "symbolic":
            scores.symlink_to(victim)
        elif link == "hard":
            scores.hardlink_to(victim)
        _, err = statebelt("run", audio_bundle, path, "--scores", scores, "--given", tmp_path / "v.npy", code=2)
        assert f"would overwrite the {read} {victim}; name another place" in err
        assert victim.read_bytes() == before

    def test_older_scores_stay_until_there_are_new_ones(self, tmp_path: Path, audio_bundle: Path) -> None:
        path, keep = recording(tmp_path / "a.wav", 0.2), tmp_path / "keep.npz"
        (tmp_path / "link.npz").symlink_to(keep)
        keep.write_bytes(b"last week's")
        keep.chmod(0o600)
        before = set(tmp_path.iterdir())
        statebelt("run", audio_bundle, tmp_path / "absent.wav", "--scores", keep, code=2)
        assert keep.read_bytes() == b"last week's"
        statebelt("run", audio_bundle, tmp_path / "absent.wav", "--scores", tmp_path / "none.npz", code=2)
        assert set(tmp_path.iterdir()) == before
        statebelt("run", audio_bundle, tmp_path / "absent.wav", path, "--scores", tmp_path / "link.npz", code=2)
        with np.load(keep) as scores:
            assert list(scores) == [str(path)]
        assert keep.stat().st_mode & 0o777 == 0o600
        assert set(tmp_path.iterdir()) == before

    def test_the_shipped_bundle_hears_the_shipped_recording(self) -> None:
        out, _ = statebelt("run", "digits", SPOKEN, "--json")
        heard = [event["label"] for event in json.loads(out)["events"]]
        said = [word["word"] for word in json.loads(SPOKEN.with_suffix(".json").read_text())["words"]]
        assert heard == said


class TestMistakes:
    """One sentence on standard error, no traceback, the documented exit status."""

    def test_an_unreadable_file_among_others(self, tmp_path: Path, audio_bundle: Path) -> None:
        (tmp_path / "broken.wav").write_bytes(b"RIFF no, not really")
        good = recording(tmp_path / "good.wav", 0.5)
        out, err = statebelt(
            "run", audio_bundle, tmp_path / "broken.wav", tmp_path / "absent.wav", good, "--json", code=2
        )
        assert [json.loads(line)["file"] for line in out.splitlines()] == [str(good)]
        assert "broken.wav: not a recording that libsndfile can read" in err
        assert "absent.wav: no such file" in err

    def test_what_is_there_and_is_no_file(self, tmp_path: Path, audio_bundle: Path) -> None:
        os.mkfifo(tmp_path / "pipe.csv")
        strange = ("/dev/null", tmp_path / "pipe.csv", tmp_path / ("x" * 300))
        _, err = statebelt("run", audio_bundle, *strange, code=2)
        for path, why in zip(
            strange,
            ("not a file, but a device", "not a file, but a FIFO", "cannot be read: File name too long"),
            strict=True,
        ):
            assert f"error: {path}: {why}\n" in err

    def test_names_steer_no_terminal(self, tmp_path: Path, audio_bundle: Path) -> None:
        """Whoever sends files chooses their names."""
        (tmp_path / "a\x1b[31m\x07.wav").write_bytes(b"")
        _, err = statebelt("run", audio_bundle, tmp_path, code=2)
        assert "a\\x1b[31m\\x07.wav: not a recording" in err
        assert all(c.isprintable() or c == "\n" for c in err)

    def test_a_recording_with_nan(self, tmp_path: Path, audio_bundle: Path) -> None:
        path = tmp_path / "nan.wav"
        soundfile.write(path, np.array([0.0, np.nan, 0.1], np.float32), 16_000, subtype="FLOAT")
        _, err = statebelt("run", audio_bundle, path, code=2)
        assert "holds NaN or infinity" in err

    def test_an_empty_folder(self, tmp_path: Path, audio_bundle: Path) -> None:
        (tmp_path / "empty").mkdir()
        _, err = statebelt("run", audio_bundle, tmp_path / "empty", code=2)
        assert "no recordings in" in err

    def test_wrong_channels(self, tmp_path: Path) -> None:
        (tmp_path / "sensor.onnx").write_bytes(zoo.sensor())
        _, err = statebelt("run", tmp_path / "sensor.onnx", recording(tmp_path / "mono.wav", 0.2), code=2)
        assert "1 channel, expected 6" in err

    @pytest.mark.parametrize("command", [("run", "{}", "x.wav"), ("inspect", "{}")])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "no bundle at"),
            (b"", "no ONNX model"),
            (b"\x08\x07 garbage \xff" * 100, "no ONNX model"),
            (zoo.audio()[:-200], "no ONNX model"),
            ("foreign", "an ONNX model, but no bundle"),
            ("foreign", "Make a bundle of it with `statebelt adopt`"),
        ],
        ids=["absent", "empty", "garbage", "cut off", "foreign", "what to do"],
    )
    def test_a_bundle_that_is_none(
        self, tmp_path: Path, command: tuple[str, ...], content: bytes | str | None, message: str
    ) -> None:
        path = tmp_path / "model.onnx"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "foreign":
            model = onnx.load_from_string(zoo.audio())
            helper.set_model_props(model, {})
            path.write_bytes(model.SerializeToString())
        _, err = statebelt(*(part.format(path) for part in command), code=2)
        assert message in err
        assert err.startswith("error: ")
        assert "Traceback" not in err

    def test_scores_that_cannot_be_written(self, tmp_path: Path, audio_bundle: Path) -> None:
        path = recording(tmp_path / "a.wav", 0.2)
        _, err = statebelt("run", audio_bundle, path, "--scores", tmp_path / "no" / "s.npz", code=2)
        assert "cannot be written: No such file or directory" in err
        _, err = statebelt("run", audio_bundle, path, "--scores", "/dev/full", code=2)
        assert "--scores /dev/full: cannot be written: No space left on device" in err

    @pytest.mark.parametrize(
        "arguments",
        [
            f"run digits {SPOKEN} --chunk-ms 0",
            "run digits",
            "push",
            f"push {SPOKEN} --pace slow",
            "worker --on-gap ignore",
            "nonsense",
            "tail --nonsense",
        ],
    )
    def test_wrong_flags(self, arguments: str) -> None:
        _, err = statebelt(*arguments.split(), code=2)
        assert "Usage:" in err

    @pytest.mark.parametrize("number", ["inf", "nan", "-inf"])
    @pytest.mark.parametrize(
        "arguments",
        [
            f"run digits {SPOKEN} --chunk-ms",
            f"push {SPOKEN} --chunk-ms",
            "push - --pace realtime --speed",
            "demo --chunk-ms",
            "tail --seconds",
            "verify digits --seconds",
            "verify digits --tolerance",
            "adopt m.onnx --rate",
            "adopt m.onnx --tolerance",
        ],
    )
    def test_numbers_that_are_none(self, arguments: str, number: str) -> None:
        _, err = statebelt(*arguments.split(), number, code=2)
        assert "is not finite" in err or "greater than" in err
        assert "Usage:" in err

    def test_lengths_beyond_all_bounds(self, tmp_path: Path, audio_bundle: Path) -> None:
        """A chunk may well be longer than what there is; a stream that is made has to fit into memory."""
        path = recording(tmp_path / "a.wav", 0.2)
        assert statebelt("run", audio_bundle, path, "--chunk-ms", 1e308) == statebelt("run", audio_bundle, path)
        _, err = statebelt("verify", audio_bundle, "--seconds", 1e308, code=2)
        assert "streams of 1e+308 s: expected 0 to 6250 s" in err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("worker --lease-ms 0", "lease_ms: Input should be greater than 0"),
            ("worker --partitions 100000", "partitions: Input should be less than or equal to 1024"),
            ("tail --until-end", "--until-end waits for the end of one stream: name it with --stream"),
            (f"push - {SPOKEN}", "- (standard input) stands alone"),
            (f"push {SPOKEN} --url ftp://x", "'ftp://x' is no Redis URL"),
            ("topics --url nowhere", "'nowhere' is no Redis URL"),
        ],
    )
    def test_settings_that_cannot_work(self, arguments: str, message: str) -> None:
        _, err = statebelt(*arguments.split(), code=2)
        assert message in err

    @pytest.mark.parametrize(
        "command", [f"push {SPOKEN}", "push -", "tail", "topics", "worker", f"demo {SPOKEN} --url URL"]
    )
    def test_no_server(self, tmp_path: Path, command: str) -> None:
        url = f"unix://{tmp_path}/nobody.sock"
        arguments = command.replace("URL", url).split()
        _, err = statebelt(*arguments, *([] if "--url" in arguments else ["--url", url]), stdin=b"", code=1)
        assert f"no Redis answers at {url}" in err
        assert "Start `statebelt redis` in another terminal, or set REDIS_URL" in err
        assert ".)" not in err

    def test_no_server_in_this_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("REDIS_URL", raising=False)
        monkeypatch.delenv("STATEBELT_URL", raising=False)
        _, err = statebelt("topics", code=1)
        assert "no Redis answers at unix://" in err

    def test_a_settings_file_that_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("statebelt.toml").write_text("topic = = 1")
        _, err = statebelt("topics", code=2)
        assert "statebelt.toml cannot be read" in err
        Path("statebelt.toml").write_text("colour = 1")
        _, err = statebelt("topics", code=2)
        assert "colour" in err


class TestOutput:
    """Of a process: what Python does when it exits is part of it."""

    @staticmethod
    def told(arguments: str, stdout: int | IO[bytes]) -> tuple[int, str]:
        command = [sys.executable, "-m", "pipeline.cli", *arguments.split()]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
        return done.returncode, done.stderr

    @pytest.mark.parametrize("buffered", [True, False])
    @pytest.mark.parametrize(
        "arguments", [f"run digits {SPOKEN}", f"run digits {SPOKEN} --json", "inspect digits", "--help"]
    )
    def test_a_full_disk(self, monkeypatch: pytest.MonkeyPatch, arguments: str, buffered: bool) -> None:
        monkeypatch.setenv("PYTHONUNBUFFERED", "" if buffered else "1")
        with open("/dev/full", "wb") as full:
            status, err = self.told(arguments, full)
        assert (status, err) == (
            1, "error: the output could not be written: No space left on device. What came of it is not whole\n"
        )  # fmt: skip

    def test_nobody_who_reads_it_is_no_error(self) -> None:
        """`| head`: it ends without a word."""
        reading, writing = os.pipe()
        os.close(reading)
        try:
            assert self.told(f"run digits {SPOKEN} --json", writing) == (1, "")
        finally:
            os.close(writing)


class TestInspect:
    def test_json(self, audio_bundle: Path) -> None:
        out, _ = statebelt("inspect", audio_bundle, "--json")
        told = json.loads(out)
        bundle = zoo.bundle("audio")
        assert told["manifest"] == bundle.manifest.model_dump(mode="json")
        assert told["size_bytes"] == audio_bundle.stat().st_size
        assert told["fingerprint"] == bundle.fingerprint.hex()
        assert told["row_bytes"] % 64 == 0

    @pytest.mark.parametrize("name", ["audio", "sensor", "look_ahead", "digits"])
    def test_people(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "b.onnx"
        path.write_bytes(zoo.ZOO[name]())
        out, _ = statebelt("inspect", path)
        for state in zoo.bundle(name).manifest.model.states:
            assert state.input in out
        assert "fingerprint" in out


class TestPlayback:
    @pytest.mark.parametrize(
        ("paths", "names"),
        [
            (["a/x.wav", "b/y.wav"], ["x", "y"]),
            (["a/x.wav", "b/x.wav", "y.wav"], ["a/x", "b/x", "y"]),
            (["a/b/x.wav", "b/x.wav"], ["a/b/x", "b/x"]),
            (["x.wav", "x.flac"], ["x.wav", "x.flac"]),
            (["x.wav", "x.wav", "x#2.wav"], ["x", "x#2", "x#2#2"]),
            (["take{1}.wav", "tab\t.wav"], ["take(1)", "tab_"]),
        ],
    )
    def test_names(self, paths: list[str], names: list[str]) -> None:
        assert stream_names([Path(path) for path in paths]) == names

    def test_rounds_lose_and_add_nothing(self) -> None:
        lengths = {"a": 0, "b": 1, "c": 7, "d": 8, "e": 23}
        whole = {name: np.arange(n, dtype=np.int16).reshape(-1, 1) for name, n in lengths.items()}
        parts = list(rounds([Recording(n, Path(n), s) for n, s in whole.items()], 8, end=True))
        assert [part.samples for part in parts] == [8, 16, 23]
        for name, samples in whole.items():
            mine = [(s, end) for part in parts for stream, s, end in part.items if stream == name]
            assert np.concatenate([s for s, _ in mine]).tolist() == samples.tolist()
            assert [end for _, end in mine] == [False] * (len(mine) - 1) + [True]

    def test_pace_is_kept_by_the_clock_and_not_by_adding_up(self) -> None:
        due: list[float] = []
        parts = rounds([Recording("a", Path("a"), np.zeros((30_000, 1), np.int16))], 10, end=False)
        taken = list(paced(parts, 1000, due.append, start_s=5.0))
        assert len(taken) == 3000
        assert due == [5.0 + (k + 1) * 10 / 1000 for k in range(3000)]
        assert not any(end for part in taken for _, _, end in part.items)
