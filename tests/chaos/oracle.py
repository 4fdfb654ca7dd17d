"""What a whole signal must yield, from the definitions: numpy's framing and sums, onnxruntime. No runtime code.

(But for the decisions on words: those are the head's over all frames at once. Its own oracle are the contract tests.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import scipy.fft

from pipeline.bundle import load
from pipeline.frontend import COMPILED
from pipeline.manifest import METADATA_KEY
from tests.fft import power


@dataclass(frozen=True)
class Whole:
    """What a signal yields. `scores` float32 `[T, C]`; `events` None where the bundle publishes scores."""

    scores: np.ndarray
    events: list[dict[str, object]] | None


class Oracle:
    """The bundle at `path` on whole signals, in one forward each."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # DESIGN section 3: what makes bytes comparable
        self._onnx = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._about = json.loads(self._onnx.get_modelmeta().custom_metadata_map[METADATA_KEY])
        assert self._about["frontend"]["kind"] == "power"
        assert self._about["model"]["latency"] == 0
        assert self._about["model"]["block"] == 1
        self.hop = int(self._about["frontend"]["hop_samples"])
        self.tail = int(self._about["model"]["tail_frames"])
        self.publishes_scores = self._about["head"]["kind"] == "scores"
        self._head = None if self.publishes_scores else load(path).head

    def frames(self, signal: np.ndarray) -> np.ndarray:
        """int16 `[N]` to power spectra `[T, F]`: frame t ends at sample (t + 1) * hop, silence before and after."""
        window = int(self._about["frontend"]["window_samples"])
        x = signal.astype(np.float32) / np.float32(32768)
        count = -(-len(x) // self.hop)
        x = np.concatenate([np.zeros(window - self.hop, np.float32), x, np.zeros(count * self.hop - len(x), "f4")])
        hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
        cut = np.array([x[t * self.hop : t * self.hop + window] for t in range(count)], np.float32)
        if COMPILED:
            return power(cut.reshape(count, window), hann)
        spectrum = scipy.fft.rfft(cut.reshape(count, window) * hann, axis=-1)
        return spectrum.real**2 + spectrum.imag**2

    def __call__(self, signal: np.ndarray) -> Whole:
        spec = self._about["model"]
        silence = np.zeros((self.tail, spec["features"]), np.float32)
        frames = np.concatenate([self.frames(signal), silence])
        feeds = {s["input"]: np.full(s["shape"], s["initial"], s["dtype"]) for s in spec["states"]}
        (scores,) = self._onnx.run([spec["output"]], {spec["input"]: frames[None], **feeds})
        return Whole(scores[0], None if self._head is None else self._events(scores, len(signal)))

    def due(self, stops: list[int]) -> list[int]:
        """How many frames are complete with each chunk: whole hops; at the end all, and the tail."""
        return [stop // self.hop for stop in stops[:-1]] + [-(-stops[-1] // self.hop) + self.tail]

    def _events(self, scores: np.ndarray, samples: int) -> list[dict[str, object]]:
        assert self._head is not None
        during, state = self._head.step(scores, self._head.initial_state(1))
        rate = float(self._about["input"]["sample_rate_hz"])
        return [
            {
                "label": self._head.labels[label],
                "start_s": min(start, samples) / rate,
                "end_s": min(end, samples) / rate,
                "score": round(score, 6),
            }
            for part in (during, self._head.flush(state))
            for _, label, start, end, score in zip(*(column.tolist() for column in part), strict=True)
        ]
