"""What one writes first: a chunk's log-mel by librosa, onnxruntime at batch 1, the state in a dictionary.

Written with care all the same: features carry their left context, so that the scores are right, and onnxruntime has
one thread, as more were slower. What it lacks is not hidden: a kill loses every stream's state.
"""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import onnxruntime as ort

from tests.bench.yardstick import FLOOR, HIDDEN, HOP, LAYERS, MELS, RATE_HZ, WINDOW


class Handler:
    """A chunk of a stream to its scores `[T, C]`."""

    def __init__(self, core: Path | str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._model = ort.InferenceSession(str(core), options)
        self._streams: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def __call__(self, stream: str, pcm: bytes, end: bool) -> np.ndarray:
        h, c, before = self._streams.pop(stream, None) or self._fresh()
        samples = np.concatenate([before, np.frombuffer(pcm, "<i2").astype(np.float32) / 32768])
        mel = librosa.feature.melspectrogram(
            y=samples, sr=RATE_HZ, n_fft=WINDOW, hop_length=HOP, center=False, n_mels=MELS
        )
        scores, h, c = self._model.run(None, {"x": np.log(mel + FLOOR).T[None].astype(np.float32), "h": h, "c": c})
        if not end:
            self._streams[stream] = (h, c, samples[HOP - WINDOW :])
        return scores[0]

    def _fresh(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        zeros = np.zeros((LAYERS, 1, HIDDEN), np.float32)
        return zeros, zeros, np.zeros(WINDOW - HOP, np.float32)
