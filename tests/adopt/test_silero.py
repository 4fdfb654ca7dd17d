"""Silero VAD, all versions that a wheel carries: against the step loop and the iterator of the package itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.bundle import Bundle, load
from pipeline.component import as_float
from pipeline.offline import run
from pipeline.verify import verify

from .conftest import original, recordings

HOP, RATE_HZ = 512, 16_000


def framed(samples: np.ndarray) -> np.ndarray:
    """`[T, 512]` float32, padded with zeros at the end as the package pads."""
    x = as_float(samples)[:, 0]
    return np.pad(x, (0, -len(x) % HOP)).reshape(-1, HOP)


def theirs(samples: np.ndarray) -> np.ndarray:
    """Probabilities from the package's own step loop."""
    torch = pytest.importorskip("torch")
    from silero_vad.utils_vad import OnnxWrapper

    model = OnnxWrapper(str(original("silero-vad")), force_onnx_cpu=True)
    return np.concatenate([model(torch.from_numpy(frame), RATE_HZ).numpy()[0] for frame in framed(samples)])


def iterated(samples: np.ndarray) -> list[tuple[str, int]]:
    """Starts and ends, in samples, from the package's own VADIterator."""
    torch = pytest.importorskip("torch")
    from silero_vad.utils_vad import OnnxWrapper, VADIterator

    iterator = VADIterator(OnnxWrapper(str(original("silero-vad")), force_onnx_cpu=True))
    told = [iterator(torch.from_numpy(frame)) for frame in framed(samples)]
    return [(kind, at) for each in told if each for kind, at in each.items()]


@pytest.fixture(scope="module", params=["jfk", "digits"])
def samples(request: pytest.FixtureRequest) -> np.ndarray:
    return recordings()[request.param]


def test_probabilities_are_theirs_to_the_last_bit(bundle: Callable[[str], Bundle], samples: np.ndarray) -> None:
    expected = theirs(samples)
    assert expected.max() > 0.9
    assert expected.min() < 0.1
    for chunk_samples in (None, 700, 16_000):
        scores = run(bundle("silero-vad"), samples, chunk_samples=chunk_samples).scores
        assert scores[:, 0].tobytes() == expected.tobytes()


def test_segments_are_those_of_their_iterator(bundle: Callable[[str], Bundle], samples: np.ndarray) -> None:
    """Theirs ends no segment with the recording, ours does: that one is the rest."""
    expected = iterated(samples)
    assert len(expected) > 5
    events = run(bundle("silero-vad"), samples, chunk_samples=1000).events
    starts = [("start", round(e.start_s * RATE_HZ)) for e in events if e.label == "speech_start"]
    whole = [e for e in events if e.label == "speech"]
    assert starts == [each for each in expected if each[0] == "start"]
    ends = [("end", round(e.end_s * RATE_HZ)) for e in whole]
    theirs_end = [each for each in expected if each[0] == "end"]
    last = min(len(samples), theirs_end[-1][1]) if len(theirs_end) == len(whole) else len(samples)
    assert ends[: len(theirs_end)][:-1] == theirs_end[: len(whole)][:-1]
    assert ends[-1] == ("end", last)
    assert [round(e.start_s * RATE_HZ) for e in whole] == [at for _, at in starts]


def test_without_its_context_it_hears_nothing(adopted: Callable[..., Path]) -> None:
    """The trap: the graph takes 512 samples as well, and says next to nothing of them."""
    speech = recordings()["jfk"]
    deaf = load(adopted("silero-vad", "--window", "512", "--hop", "512"))
    assert run(load(adopted("silero-vad")), speech).scores.mean() > 0.5
    assert run(deaf, speech).scores.mean() < 0.01


@pytest.mark.parametrize("recipe", ["silero-vad", "silero-vad-sequence", "silero-vad-v4"])
def test_verified(bundle: Callable[[str], Bundle], recipe: str) -> None:
    inexact = [
        check
        for check in verify(bundle(recipe), recordings()["jfk"], seconds=3, streams=16)
        if check.verdict != "exact"
    ]
    assert not inexact


def test_the_sequence_graph_in_chunks(bundle: Callable[[str], Bundle], samples: np.ndarray) -> None:
    """Chunks of 1 frame, of 7, and all frames: the same bytes, and about the step graph's."""
    one = bundle("silero-vad-sequence")
    whole = run(one, samples)
    for frames in (1, 7):
        chunked = run(one, samples, chunk_samples=frames * HOP)
        assert chunked.scores.tobytes() == whole.scores.tobytes()
        assert chunked.events == whole.events
    np.testing.assert_allclose(whole.scores[:, 0], theirs(samples), atol=1e-4)


def test_version_4_hears_speech(bundle: Callable[[str], Bundle]) -> None:
    """Against onnxruntime alone, frame by frame."""
    import onnxruntime as ort

    samples = recordings()["jfk"]
    model = ort.InferenceSession(str(original("silero-vad-v4")))
    h = c = np.zeros((2, 1, 64), np.float32)
    expected = []
    for frame in framed(samples):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y, h, c = model.run(None, {"input": frame[None], "h": h, "c": c, "sr": np.array(RATE_HZ, np.int64)})
        expected.append(y[0, 0])
    scores = run(bundle("silero-vad-v4"), samples).scores[:, 0]
    assert scores.tobytes() == np.array(expected, np.float32).tobytes()
    assert 0.3 < scores.mean() < 0.95
