"""`--wav`: the audio that a bundle makes, as files; `run` without Redis, `tail` with it."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
import soundfile
import structlog

from pipeline import audio
from pipeline.broker.keys import log_key, partition_of
from pipeline.cli.wav import WavFile
from pipeline.errors import ConfigError
from pipeline.offline import run
from pipeline.samples import to_sample_type
from tests import zoo
from tests.harness import make_producer, until, worker
from tests.unit.test_cli import statebelt
from tests.unit.test_cli_redis import started

RATE = 8_000


@pytest.fixture
def denoiser(tmp_path: Path) -> Path:
    path = tmp_path / "denoise.onnx"
    path.write_bytes(zoo.denoise())
    return path


def noisy(path: Path, seconds: float = 0.4, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = zoo.signal(zoo.bundle("denoise").manifest.input, int(seconds * RATE), seed)
    soundfile.write(path, x[:, 0], RATE, subtype="FLOAT")
    return path


def pcm(path: Path) -> bytes:
    """What is in a WAV file, and that it is one of 16 bits."""
    with soundfile.SoundFile(path) as file:
        assert (file.samplerate, file.channels, file.subtype, file.format) == (RATE, 1, "PCM_16", "WAV")
        return bytes(file.read(dtype="int16").tobytes())


def wanted(path: Path) -> bytes:
    """What the whole recording yields, as 16 bits."""
    bundle = zoo.bundle("denoise")
    made = run(bundle, audio.read(path, bundle.manifest.input)).samples
    assert made is not None
    assert np.abs(made).max() > 1  # some of it is clipped
    return to_sample_type(made, "int16").tobytes()


class TestRun:
    @pytest.mark.parametrize("flags", [(), ("--chunk-ms", 7)])
    def test_one_recording_to_one_file(self, tmp_path: Path, denoiser: Path, flags: tuple[object, ...]) -> None:
        path, clean = noisy(tmp_path / "noisy.wav"), tmp_path / "clean.wav"
        out, _ = statebelt("run", denoiser, path, "--wav", clean, "--json", *flags)
        assert json.loads(out) == {"file": str(path), "seconds": 0.4, "events": [], "samples": 3200}
        assert pcm(clean) == wanted(path)
        assert "3200 samples" in statebelt("run", denoiser, path, "--wav", clean)[0].replace("\n", " ")
        assert pcm(clean) == wanted(path)

    def test_several_to_a_folder(self, tmp_path: Path, denoiser: Path) -> None:
        """Named as `push` names streams; a folder with one recording is a folder all the same."""
        paths = [noisy(tmp_path / "in" / name, seed=n) for n, name in enumerate(("a/x.wav", "b/x.flac.wav", "b/x.wav"))]
        statebelt("run", denoiser, tmp_path / "in", "--wav", tmp_path / "out" / "clean")
        found = {path.name: pcm(path) for path in (tmp_path / "out" / "clean").iterdir()}
        assert found == {
            name: wanted(path) for name, path in zip(("a-x.wav", "x.flac.wav", "b-x.wav"), paths, strict=True)
        }
        statebelt("run", denoiser, paths[0].parent, "--wav", tmp_path / "alone")
        assert [path.name for path in (tmp_path / "alone").iterdir()] == ["x.wav"]

    def test_one_recording_into_a_folder_that_is_there(self, tmp_path: Path, denoiser: Path) -> None:
        path = noisy(tmp_path / "noisy.wav")
        (tmp_path / "out").mkdir()
        statebelt("run", denoiser, path, "--wav", tmp_path / "out")
        assert pcm(tmp_path / "out" / "noisy.wav") == wanted(path)

    def test_a_bundle_that_makes_none(self, tmp_path: Path, denoiser: Path) -> None:
        (tmp_path / "vad.onnx").write_bytes(zoo.vad())
        target = tmp_path / "clean.wav"
        _, err = statebelt("run", tmp_path / "vad.onnx", noisy(tmp_path / "a.wav"), "--wav", target, code=2)
        assert "makes no audio: its head is 'segments'" in err
        assert not target.exists()

    @pytest.mark.parametrize("to_folder", [False, True])
    def test_no_recording_is_overwritten(self, tmp_path: Path, denoiser: Path, to_folder: bool) -> None:
        path = noisy(tmp_path / "in" / "noisy.wav")
        before = path.read_bytes()
        given = path.parent if to_folder else path
        _, err = statebelt("run", denoiser, given, "--wav", given, code=2)
        assert "would overwrite the recording" in err
        assert path.read_bytes() == before
        (tmp_path / "link.wav").hardlink_to(path)
        _, err = statebelt("run", denoiser, path, "--wav", tmp_path / "link.wav", code=2)
        assert "would overwrite the recording" in err
        assert path.read_bytes() == before

    def test_where_nothing_can_be_written(self, tmp_path: Path, denoiser: Path) -> None:
        path = noisy(tmp_path / "noisy.wav")
        _, err = statebelt("run", denoiser, path, "--wav", tmp_path / "no" / "clean.wav", code=2)
        assert "cannot be written: No such file or directory" in err
        _, err = statebelt("run", denoiser, path, noisy(tmp_path / "b.wav"), "--wav", path, code=2)
        assert "goes into a folder, and this cannot be one" in err

    @pytest.mark.parametrize("name", ["clean.mp3", "clean.FLAC"])
    def test_another_format_is_not_written_under_its_name(self, tmp_path: Path, denoiser: Path, name: str) -> None:
        path = noisy(tmp_path / "noisy.wav")
        _, err = statebelt("run", denoiser, path, "--wav", tmp_path / name, code=2)
        assert "name the file .wav" in err.replace("\n", " ")
        assert not (tmp_path / name).exists()


class TestWavFile:
    def test_it_can_be_played_at_any_moment(self, tmp_path: Path) -> None:
        path = tmp_path / "x.wav"
        with WavFile(path, RATE) as file:
            assert pcm(path) == b""
            file.write(np.array([0.5, 2, -2], np.float32))
            assert pcm(path) == np.array([16384, 32767, -32768], "<i2").tobytes()
            file.write(np.array([0.25], np.float32))
            assert pcm(path) == np.array([16384, 32767, -32768, 8192], "<i2").tobytes()
            assert file.samples == 4

    def test_what_a_wav_file_cannot_say(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError, match="whole number"):
            WavFile(tmp_path / "x.wav", 22050.5)
        monkeypatch.setattr("pipeline.cli.wav._MOST_BYTES", 8)
        with WavFile(tmp_path / "x.wav", RATE) as file:
            file.write(np.zeros(4, np.float32))
            with pytest.raises(ConfigError, match="full"):
                file.write(np.zeros(1, np.float32))
        assert pcm(tmp_path / "x.wav") == bytes(8)

    @pytest.mark.filterwarnings("error")  # nor is anything said when it is collected
    def test_a_disk_that_is_full(self) -> None:
        full = Path("/dev/full")
        if not full.exists():
            pytest.skip("no /dev/full here")
        with pytest.raises(ConfigError, match=r"/dev/full: cannot be written: No space left"):
            WavFile(full, RATE)
        gc.collect()


@pytest.fixture
def _quiet() -> Iterator[None]:
    """The logs of workers in this process stay off its standard output, which is under test."""
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(io.StringIO()))
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("_quiet")
class TestTail:
    def test_a_stream_to_its_end(self, url: str, tmp_path: Path) -> None:
        path, clean = noisy(tmp_path / "noisy.wav"), tmp_path / "clean.wav"
        tail = ("tail", "--stream", "noisy", "--from-beginning", "--url", url)
        with worker(url, zoo.bundle("denoise")):
            statebelt("push", path, "--rate", RATE, "--sample-type", "float32", "--chunk-ms", 30, "--url", url)
            out, _ = statebelt(*tail, "--wav", clean, "--json")
            lines = [json.loads(line) for line in out.splitlines()]
            assert pcm(clean) == wanted(path)
            assert sum(line["samples"] for line in lines) == 3200
            assert lines[-1]["end"]
            shown, _ = statebelt(*tail, "--wav", clean)
            assert "samples" not in shown
            shown, _ = statebelt(*tail, "--until-end")
            assert "240 samples" in shown

    def test_it_is_written_as_it_comes(self, url: str, tmp_path: Path) -> None:
        bundle, clean = zoo.bundle("denoise"), tmp_path / "clean.wav"
        x = zoo.signal(bundle.manifest.input, 1600)
        with worker(url, bundle), make_producer(url, bundle) as producer:
            producer.push("s", x[:800])
            with started("tail", "--stream", "s", "--from-beginning", "--wav", clean, "--url", url) as process:
                until(lambda: clean.exists() and len(clean.read_bytes()) == 44 + 2 * 752, "what is complete")
                assert pcm(clean) == to_sample_type(run(bundle, x).samples[:752], "int16").tobytes()
                producer.push("s", x[800:], end=True)
                process.communicate(timeout=20)
        assert process.returncode == 0
        assert pcm(clean) == to_sample_type(run(bundle, x).samples, "int16").tobytes()

    def test_a_gap_is_told(self, url: str, tmp_path: Path, redis_client: redis.Redis) -> None:
        """The file holds what came before it, then the stream that started afresh."""
        bundle, clean = zoo.bundle("denoise"), tmp_path / "clean.wav"
        x = zoo.signal(bundle.manifest.input, 400)
        with worker(url, bundle), make_producer(url, bundle) as producer:
            producer.push("s", x)
            redis_client.xadd(
                log_key("audio", partition_of("s", producer.partitions)),
                {"stream": "s", "seq": 2**60, "data": x.tobytes(), "end": "1"},
            )
            _, err = statebelt("tail", "--stream", "s", "--from-beginning", "--wav", clean, "--json", "--url", url)
        assert "s: gap at chunk" in err
        assert "goes on with it after 352 samples" in err.replace("\n", " ")
        made = run(bundle, x).samples
        assert pcm(clean) == to_sample_type(np.concatenate([made[:352], made]), "int16").tobytes()

    def test_a_stream_without_audio(self, url: str, tmp_path: Path) -> None:
        bundle = zoo.bundle("vad")
        with worker(url, bundle), make_producer(url, bundle) as producer:
            producer.push("s", zoo.signal(bundle.manifest.input, 4000), end=True)
            kept = tmp_path / "x.wav"
            kept.write_bytes(b"last week's")
            _, err = statebelt("tail", "--stream", "s", "--from-beginning", "--wav", kept, "--url", url, code=2)
            assert "stream 's' has ended and had no audio" in err
            assert "bundle of group 'digits' makes none" in err
            assert kept.read_bytes() == b"last week's"
            _, err = statebelt("tail", "--stream", "t", "--seconds", 0.2, "--wav", kept, "--url", url, code=1)
            assert "stream 't' has had no audio within 0.2 s" in err
        assert kept.read_bytes() == b"last week's"

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("x.mp3", "name the file .wav"),
            ("no/x.wav", "cannot be written: No such file or directory"),
            ("file/x.wav", "cannot be written: Not a directory"),
            ("folder", "cannot be written: Is a directory"),
        ],
    )
    def test_what_cannot_be_is_told_before_there_is_audio(
        self, url: str, tmp_path: Path, name: str, words: str
    ) -> None:
        """Nobody works here: it would wait for ever."""
        make_producer(url, zoo.bundle("denoise")).close()
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        _, err = statebelt("tail", "--stream", "s", "--seconds", 30, "--wav", tmp_path / name, "--url", url, code=2)
        assert words in err.replace("\n", " ")

    def test_whose_audio(self, url: str, tmp_path: Path) -> None:
        _, err = statebelt("tail", "--wav", tmp_path / "x.wav", "--url", url, code=2)
        assert "--wav writes the audio of one stream: name it with --stream" in err
        assert not (tmp_path / "x.wav").exists()
