"""Frames against librosa, left-padded and not centred, on recordings of real people (bar 3)."""

from __future__ import annotations

from functools import cache

import librosa
import numpy as np
import onnx
import pytest
import soundfile
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.bundle import SHIPPED
from pipeline.frontend import PowerSpectrum
from tests import zoo
from tests.harness import DATA

RECORDINGS = {
    "a spoken digit": "fsdd/george/*/*.flac",
    "another speaker's": "fsdd/yweweler/*/*.flac",
    "a president": "speech/jfk.flac",
}
WINDOWS_AND_HOPS = [(256, 160), (256, 80), (256, 256), (200, 77), (400, 160), (512, 128), (255, 100), (1024, 1)]

Signal = NDArray[np.float32]


@cache
def recording(name: str) -> tuple[Signal, int]:
    """Mono float32 in -1..1, and its rate. Skips where the corpus is absent."""
    pattern = RECORDINGS[name]
    found = sorted(DATA.glob(pattern)) or sorted(DATA.glob(pattern.replace("/*/", "/")))
    if not found:
        pytest.skip(f"no recording {DATA / pattern} (set STATEBELT_DATA)")
    samples, rate_hz = soundfile.read(found[len(found) // 2], dtype="float32", always_2d=True)
    return samples.mean(axis=1)[: 6 * rate_hz], rate_hz


def frames(signal: Signal, window: int, hop: int) -> Signal:
    """`[T, F]` of the pipeline's frontend."""
    frontend = PowerSpectrum(window, hop)
    whole = signal[: len(signal) // hop * hop]
    return frontend.step(whole[None, :, None], frontend.initial_state(1))[0][0]


def left_padded(signal: Signal, window: int, hop: int) -> Signal:
    """Zeros before the signal, so that frame t of an uncentred analysis ends at sample (t + 1) * hop."""
    return np.concatenate([np.zeros(window - hop, np.float32), signal[: len(signal) // hop * hop]])


def assert_power(got: Signal, expected: Signal) -> None:
    """Within 1e-5 of the power of every bin at most 30 dB below its frame's peak; within 1e-6 of the peak's amplitude
    in those below, where float32 terms cancel (librosa's as ours)."""
    assert got.shape == expected.shape
    peak = expected.max(axis=1, keepdims=True)
    loud = expected >= 1e-3 * peak
    np.testing.assert_allclose(got[loud], expected[loud], rtol=1e-5)
    assert (np.abs(np.sqrt(got) - np.sqrt(expected)) <= 1e-6 * np.sqrt(peak)).all()
    assert np.ptp(np.log(peak)) > 1  # lively frames, not silence against silence


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize(("window", "hop"), WINDOWS_AND_HOPS)
def test_power_equals_librosa(name: str, window: int, hop: int) -> None:
    signal, _ = recording(name)
    signal = signal[: 2000 + window] if hop == 1 else signal
    spectrum = librosa.stft(left_padded(signal, window, hop), n_fft=window, hop_length=hop, center=False)
    got = frames(signal, window, hop)
    assert len(got) == len(signal) // hop
    assert_power(got, (np.abs(spectrum) ** 2).T)


def constants() -> dict[str, NDArray[np.float32]]:
    """The shipped graph's own filterbank and floor: what stands between `power` and the Log."""
    graph = onnx.load(SHIPPED / "digits.onnx").graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    first = next(node for node in graph.node if zoo.bundle("digits").manifest.model.input in node.input)
    raised = next(node for node in graph.node if first.output[0] in node.input)
    log = next(node for node in graph.node if raised.output[0] in node.input)
    assert [first.op_type, raised.op_type, log.op_type] == ["MatMul", "Add", "Log"]
    return {"mel": values[first.input[1]], "floor": values[raised.input[1]]}


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_shipped_log_mel_equals_librosa(name: str) -> None:
    """Within 1e-4 absolute, in units of the natural logarithm."""
    manifest = zoo.bundle("digits").manifest
    spec, bank = manifest.frontend, constants()
    assert spec.kind == "power"
    rate_hz = manifest.input.sample_rate_hz
    original, original_hz = recording(name)
    signal = librosa.resample(original, orig_sr=original_hz, target_sr=rate_hz)
    power = frames(signal, spec.window_samples, spec.hop_samples)
    got = np.log(power @ bank["mel"] + bank["floor"])
    mel = librosa.feature.melspectrogram(
        y=left_padded(signal, spec.window_samples, spec.hop_samples),
        sr=rate_hz,
        n_fft=spec.window_samples,
        hop_length=spec.hop_samples,
        n_mels=bank["mel"].shape[1],
        center=False,
        power=2.0,
    )
    expected = np.log(mel.T + bank["floor"])
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-4
    assert np.ptp(expected) > 5  # speech and silence, not floor against floor


def test_the_shipped_log_mel_as_onnxruntime_computes_it() -> None:
    """The same constants within the graph: cut off behind its Log and run, they are librosa's too."""
    import onnxruntime

    manifest = zoo.bundle("digits").manifest
    spec = manifest.frontend
    assert spec.kind == "power"
    model = onnx.load(SHIPPED / "digits.onnx")
    at = next(n for n, node in enumerate(model.graph.node) if node.op_type == "Log")
    name = model.graph.node[at].output[0]
    del model.graph.node[at + 1 :], model.graph.output[:], model.graph.input[1:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    signal, rate_hz = recording("a spoken digit")
    assert rate_hz == manifest.input.sample_rate_hz
    power = frames(signal, spec.window_samples, spec.hop_samples)
    runtime = onnxruntime.InferenceSession(model.SerializeToString())
    (got,) = runtime.run([name], {manifest.model.input: power[None]})
    mel = librosa.feature.melspectrogram(
        y=left_padded(signal, spec.window_samples, spec.hop_samples), sr=rate_hz, n_fft=spec.window_samples,
        hop_length=spec.hop_samples, n_mels=got.shape[2], center=False,
    )  # fmt: skip
    assert np.abs(got[0] - np.log(mel.T + constants()["floor"])).max() < 1e-4
