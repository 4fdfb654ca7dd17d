"""Recordings and raw PCM to samples: formats, channels, rates, and what cannot be read."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pipeline import audio
from pipeline.errors import AudioError
from pipeline.manifest import InputSpec

PCM = InputSpec(sample_rate_hz=8000)
FLOAT = InputSpec(sample_rate_hz=8000, sample_type="float32")
STEREO = InputSpec(sample_rate_hz=8000, channels=2)
FLOAT_STEREO = InputSpec(sample_rate_hz=8000, channels=2, sample_type="float32")

Samples = NDArray[np.int16]


def noise(samples: int, channels: int = 1, seed: int = 0) -> Samples:
    """All int16 values may occur, the extremes do."""
    x = np.random.default_rng(seed).integers(-32768, 32768, (samples, channels)).astype(np.int16)
    x[:2] = [[-32768], [32767]]
    return x


def tones(rate_hz: int, seconds: float = 1.0) -> NDArray[np.float64]:
    """440 and 1000 Hz, at half of full scale together."""
    t = np.arange(int(rate_hz * seconds)) / rate_hz
    return 0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 1000 * t)


@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_16"), ("aiff", "PCM_16")])
@pytest.mark.parametrize("channels", [1, 2])
def test_16_bits_pass_through_exactly(tmp_path: Path, suffix: str, subtype: str, channels: int) -> None:
    path, x = tmp_path / f"x.{suffix}", noise(5000, channels)
    soundfile.write(path, x, 8000, subtype=subtype)
    got = audio.read(path, InputSpec(sample_rate_hz=8000, channels=channels))
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got, x)
    as_float = audio.read(path, InputSpec(sample_rate_hz=8000, channels=channels, sample_type="float32"))
    np.testing.assert_array_equal(as_float, x.astype(np.float64) / 32768)


@pytest.mark.parametrize("subtype", ["PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_finer_formats_are_rounded_to_16_bits_and_kept_as_float(tmp_path: Path, subtype: str) -> None:
    path, x = tmp_path / "x.wav", np.random.default_rng(1).uniform(-1, 1, 5000)
    soundfile.write(path, x, 8000, subtype=subtype)
    got = audio.read(path, PCM)
    assert got.dtype == np.int16
    assert np.abs(got[:, 0] - x * 32768).max() <= 0.51
    assert np.abs(audio.read(path, FLOAT)[:, 0] - x).max() < 2.0**-22


def test_louder_than_full_scale_is_clipped(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, np.array([1.5, -1.5, 1.0, 0.99999]), 8000, subtype="FLOAT")
    assert audio.read(path, PCM)[:, 0].tolist() == [32767, -32768, 32767, 32767]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8000, 16_000])
def test_floats_on_another_scale_are_refused(tmp_path: Path, rate_hz: int, channels: int) -> None:
    """As programs write them that take int16 for floats. Clipped, they would be a square wave."""
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(1000, channels).astype(np.float32), rate_hz, subtype="FLOAT")
    unreadable(path, r"samples reach -?3276[78]; expected -1\.\.1.*divide them by 32768")
    assert np.abs(audio.read(path, FLOAT if channels == 1 else FLOAT_STEREO)).max() > 1000  # nothing is lost there


def test_what_resampling_adds_is_not_the_recordings_fault(tmp_path: Path) -> None:
    """Between samples of full scale, all of one sign or the other, there are peaks of several times it."""
    path = tmp_path / "x.wav"
    loud = np.where(np.random.default_rng(0).random(4000) < 0.5, -32768, 32767).astype(np.int16)
    soundfile.write(path, loud, 4000, subtype="PCM_16")
    assert np.abs(audio.read(path, FLOAT)).max() > 2
    assert np.abs(audio.read(path, PCM).astype(int)).max() == 32768


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_lossy_formats_keep_what_is_heard(tmp_path: Path, subtype: str) -> None:
    path, x = tmp_path / "x.ogg", tones(8000)
    soundfile.write(path, x, 8000, subtype=subtype)
    got = audio.read(path, FLOAT)[:, 0]
    assert abs(len(got) - len(x)) < 400
    assert peaks(got, 8000) == pytest.approx([440, 1000], abs=2)


def peaks(x: NDArray[np.float64] | NDArray[np.float32], rate_hz: float) -> list[float]:
    """The two loudest frequencies, in Hz, rising."""
    spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x))))
    found, _ = scipy.signal.find_peaks(spectrum, distance=50)
    loudest = found[np.argsort(spectrum[found])[-2:]]
    return sorted((loudest * rate_hz / len(x)).tolist())


def test_stereo_to_mono_is_the_mean(tmp_path: Path) -> None:
    path, x = tmp_path / "x.wav", noise(4000, 2)
    soundfile.write(path, x, 8000, subtype="PCM_16")
    mean = x.astype(np.float64).mean(axis=1)
    assert np.abs(audio.read(path, PCM)[:, 0] - mean).max() <= 0.5
    np.testing.assert_allclose(audio.read(path, FLOAT)[:, 0], mean / 32768, atol=1e-7)


def test_channels_are_never_made_up(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    for has in (1, 3):
        soundfile.write(path, noise(100, has), 8000)
        with pytest.raises(AudioError, match=rf"x\.wav: {has} channels?, expected 2"):
            audio.read(path, STEREO)


@pytest.mark.parametrize("rate_hz", [4000, 11_025, 16_000, 44_100, 48_000, 7_999])
@pytest.mark.parametrize("spec", [PCM, FLOAT], ids=["int16", "float32"])
def test_resampling_against_scipy(tmp_path: Path, rate_hz: int, spec: InputSpec) -> None:
    """Length, level and spectrum; scipy's polyphase filter is another design, so the edges are left out."""
    path, x = tmp_path / "x.wav", tones(rate_hz)
    soundfile.write(path, x, rate_hz, subtype="FLOAT")
    got = audio.read(path, spec)
    assert got.dtype == spec.sample_type
    assert abs(len(got) - len(x) * 8000 / rate_hz) <= 1
    signal = got[:, 0].astype(np.float64) / (32768 if spec.sample_type == "int16" else 1)
    assert peaks(signal, 8000) == pytest.approx([440, 1000], abs=1)
    common = np.gcd(rate_hz, 8000)
    expected = scipy.signal.resample_poly(x, 8000 // common, rate_hz // common)
    inner = slice(800, min(len(signal), len(expected)) - 800)
    assert np.abs(signal[inner] - expected[inner]).max() < 2e-3
    assert np.abs(signal[inner] - tones(8000)[: len(signal)][inner]).max() < 2e-4


def test_what_lies_above_the_new_nyquist_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 6000 * np.arange(16_000) / 16_000), 16_000, subtype="FLOAT")
    assert np.abs(audio.read(path, FLOAT)[200:-200]).max() < 1e-3


def test_a_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    names = ["z.wav", "a/one.flac", "a/b/two.WAV", "a/b/three.ogg"]
    for name in names:
        soundfile.write(tmp_path / name, noise(100)[:, 0], 8000, format=name.rpartition(".")[2].upper())
    (tmp_path / "notes.txt").write_text("no recording")
    (tmp_path / "folder.wav").mkdir()
    got = audio.recordings([tmp_path])
    assert got == sorted(tmp_path / name for name in names)
    given = tmp_path / "notes.txt"
    assert audio.recordings([given, tmp_path / "a"]) == [given, *sorted((tmp_path / "a").rglob("*.*"))]


def test_a_folder_without_recordings(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"no recordings in .*expected \.wav"):
        audio.recordings([tmp_path])


def unreadable(path: Path, words: str, spec: InputSpec = PCM) -> None:
    with pytest.raises(AudioError, match=words) as raised:
        audio.read(path, spec)
    assert str(path) in str(raised.value)


class TestUnreadable:
    def test_missing(self, tmp_path: Path) -> None:
        unreadable(tmp_path / "x.wav", "no such file")
        unreadable(tmp_path / ("x" * 300), "cannot be read: File name too long")
        unreadable(tmp_path, "not a file, but a folder")

    @pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\xff\xff\xff\xffWAVE", bytes(1000), b"# text\n" * 50])
    @pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "xyz"])
    def test_no_recording(self, tmp_path: Path, content: bytes, suffix: str) -> None:
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(content)
        unreadable(path, "not a recording that libsndfile can read")

    def test_a_format_without_a_header(self, tmp_path: Path) -> None:
        """soundfile cannot guess the rate of a .raw file, and says so with a TypeError."""
        path = tmp_path / "x.raw"
        path.write_bytes(bytes(1000))
        unreadable(path, "not a recording")

    def test_half_a_flac(self, tmp_path: Path) -> None:
        path = tmp_path / "x.flac"
        soundfile.write(path, noise(80_000), 8000)
        path.write_bytes(path.read_bytes()[:50_000])
        unreadable(path, "not a recording")

    def test_a_header_that_promises_more_than_memory_holds(self, tmp_path: Path) -> None:
        path = tmp_path / "x.flac"
        soundfile.write(path, noise(8000), 8000)
        content = bytearray(path.read_bytes())
        content[21] |= 0x0F  # the 36 bits of STREAMINFO's total samples
        content[22:26] = b"\xff" * 4
        path.write_bytes(content)
        unreadable(path, "not a recording")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("rate_hz", [8000, 16_000])
    @pytest.mark.parametrize("spec", [PCM, FLOAT], ids=["int16", "float32"])
    @pytest.mark.parametrize("channels", [1, 2])
    def test_not_finite(self, tmp_path: Path, value: float, rate_hz: int, spec: InputSpec, channels: int) -> None:
        path, x = tmp_path / "x.wav", np.zeros((1000, channels))
        x[500, 0] = value
        soundfile.write(path, x, rate_hz, subtype="FLOAT")
        unreadable(path, "holds NaN or infinity", spec)


@pytest.mark.parametrize("rate_hz", [8000, 16_000])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_no_samples_are_a_recording_of_no_samples(tmp_path: Path, rate_hz: int, subtype: str) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, np.empty((0, 2)), rate_hz, subtype=subtype)
    assert audio.read(path, PCM).shape == (0, 1)
    assert audio.read(path, STEREO).shape == (0, 2)


class TestPcm:
    @given(hnp.arrays(np.int16, st.tuples(st.integers(0, 60), st.just(2))), st.integers(1, 70))
    def test_any_chunk_size_yields_the_whole(self, x: Samples, chunk: int) -> None:
        parts = list(audio.pcm(io.BytesIO(x.astype("<i2").tobytes()), STEREO, chunk))
        assert all(part.shape[1] == 2 and len(part) for part in parts)
        assert [len(part) for part in parts[:-1]] == [chunk] * (len(parts) - 1)
        np.testing.assert_array_equal(np.concatenate([np.empty((0, 2), np.int16), *parts]), x)

    def test_float(self) -> None:
        x = np.array([0.5, -1, 1e-3], "<f4")
        (got,) = audio.pcm(io.BytesIO(x.tobytes()), FLOAT, 100)
        assert got[:, 0].tolist() == x.tolist()

    @pytest.mark.parametrize("extra", [1, 2, 3])
    @pytest.mark.parametrize("chunk", [1, 3, 4, 100])
    def test_an_end_within_a_sample(self, extra: int, chunk: int) -> None:
        """Every whole sample before it is handed out; then it is told."""
        x, got = noise(7, 2), []
        parts = audio.pcm(io.BytesIO(x.tobytes() + b"\1" * extra), STEREO, chunk)
        with pytest.raises(AudioError, match=f"{extra} of 4 bytes"):
            got.extend(parts)
        np.testing.assert_array_equal(np.concatenate(got), x)

    def test_a_pipe_that_writes_odd_pieces(self) -> None:
        """As standard input is: what arrives in pieces within a sample is put together."""
        x, (reading, writing) = noise(1000), os.pipe()

        def write() -> None:
            with open(writing, "wb", buffering=0) as pipe:
                data = x.tobytes()
                for at in range(0, len(data), 7):
                    pipe.write(data[at : at + 7])

        thread = threading.Thread(target=write)
        thread.start()
        with open(reading, "rb") as pipe:
            parts = list(audio.pcm(pipe, PCM, 64))
        thread.join()
        np.testing.assert_array_equal(np.concatenate(parts), x)
