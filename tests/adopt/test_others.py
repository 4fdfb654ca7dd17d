"""FlashVAD and VoiceFilter-Lite: several states on different axes, inputs given once, int8 that is not exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.audio import read
from pipeline.bundle import Bundle
from pipeline.component import as_float
from pipeline.consumer import Consumer
from pipeline.manifest import InputSpec
from pipeline.offline import run
from pipeline.verify import verify
from tests.harness import DATA, collect, make_producer, worker

from .conftest import original


def saturates() -> bool:
    """Whether onnxruntime's products of uint8 and int8 are wrong here: with AVX2 alone, sums of two are cut at 2^15."""
    weights = numpy_helper.from_array(np.full((64, 32), 127, np.int8), "weights")
    node = helper.make_node("MatMulInteger", ["x", "weights"], ["y"])
    x, y = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (("x", TensorProto.UINT8, [8, 64]), ("y", TensorProto.INT32, [8, 32]))
    )
    graph = helper.make_graph([node], "product", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString())
    (product,) = session.run(None, {"x": np.full((8, 64), 255, np.uint8)})
    return bool((product != 255 * 127 * 64).any())


WHOLE_INT8 = pytest.mark.skipif(
    saturates(), reason="int8 products saturate on this processor: the model is further off than its recipe states"
)


def features_of(samples: np.ndarray) -> np.ndarray:
    """`[T, 43]` float32, by flashvad's own extractor: windows of 25 ms, one every 10 ms."""
    original("flashvad")
    from flashvad.numpy_features import NumpyCausalFeatureExtractor

    extractor = NumpyCausalFeatureExtractor()
    frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160]
    return np.stack([extractor.from_frame(frame) for frame in frames]).astype(np.float32)


def test_flashvad_is_exact_on_its_own_features(bundle: Callable[[str], Bundle]) -> None:
    """Against onnxruntime alone, frame by frame; then every check."""
    flash = bundle("flashvad")
    path = DATA / "speech" / "jfk.flac"
    if not path.is_file():
        pytest.skip(f"no recording {path} (set STATEBELT_DATA)")
    features = features_of(as_float(read(path, InputSpec(sample_rate_hz=16_000)))[:, 0])
    model = ort.InferenceSession(str(original("flashvad")))
    state = {s.input: np.zeros(s.shape, np.float32) for s in flash.manifest.model.states}
    names = [s.output for s in flash.manifest.model.states]
    expected = []
    for frame in features:
        y, *after = model.run(["speech_logits", *names], {"feature": frame[None, None], **state})
        state = dict(zip(state, after, strict=True))
        expected.append(y[0, 0])
    done = run(flash, features, chunk_samples=17)
    assert done.scores[:, 0].tobytes() == np.array(expected, np.float32).tobytes()
    assert len([event for event in done.events if event.label == "speech"]) >= 2
    assert [check for check in verify(flash, features, seconds=1, streams=16) if check.verdict != "exact"] == []


@WHOLE_INT8
def test_voicefilter_states_how_inexact_it_is(bundle: Callable[[str], Bundle]) -> None:
    """Its quantisation scales anew in each call: cuts and company show, within what the recipe states."""
    little = {"seconds": 1, "streams": 8}
    checks = {check.name: check for check in verify(bundle("voicefilter-lite"), **little)}
    assert bundle("voicefilter-lite").manifest.model.tolerance == 0.01
    assert {check.verdict for check in checks.values()} == {"exact", "within tolerance"}
    assert 0 < checks["batch"].difference < 0.01
    strict = {check.verdict for check in verify(bundle("voicefilter-lite"), tolerance=0.0, **little)}
    assert "beyond tolerance" in strict


@WHOLE_INT8
def test_voicefilter_hears_whom_it_was_told(bundle: Callable[[str], Bundle], url: str) -> None:
    """Through Redis, two streams of the same frames with the embeddings of two speakers: each has its own mask."""
    filtering = bundle("voicefilter-lite")
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((40, 512)).astype(np.float32)
    voices = {name: 4 * rng.standard_normal(256).astype(np.float32) for name in ("a", "b")}
    with make_producer(url, filtering) as producer, worker(url, filtering):
        for name, voice in voices.items():
            producer.give(name, voice)
            for at in range(0, 40, 9):
                producer.push(name, frames[at : at + 9], end=at + 9 >= 40)
        with Consumer("audio", "digits", url=url, start="beginning") as consumer:
            found = collect(consumer, list(voices))
    masks = {name: np.concatenate([r.scores for r in found[name] if r.scores is not None]) for name in voices}
    expected = {name: run(filtering, frames, given=voice).scores for name, voice in voices.items()}
    for name, other in (("a", "b"), ("b", "a")):
        np.testing.assert_allclose(masks[name], expected[name], atol=0.01)
        assert np.abs(masks[name] - expected[name]).mean() < np.abs(masks[name] - expected[other]).mean() / 4
