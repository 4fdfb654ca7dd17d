"""The model that everybody runs: 2 x 128 LSTM at 16 kHz on 40 log-mel bands, 10 ms a frame, 11 classes, random weights.

One set of weights in three forms: torch, the core in ONNX (ready features in), the whole as a bundle (samples in).
Its size is that of the shipped digits model, at twice the rate: what a frame costs does not depend on the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.manifest import (
    HeadSpec,
    InputSpec,
    KeywordsHead,
    Manifest,
    ModelSpec,
    PowerFrontend,
    Provenance,
    ScoresHead,
    StateSpec,
)
from tests.zoo import with_manifest

RATE_HZ, WINDOW, HOP, MELS = 16_000, 400, 160, 40
LAYERS, HIDDEN, CLASSES = 2, 128, 11
FLOOR, MEAN, SCALE = 1e-6, -8.0, 0.25
FRAMES = RATE_HZ // 10 // HOP
"""Of a chunk of 100 ms."""

WORDS = KeywordsHead(background="background", smooth_frames=10, threshold=0.5, release=0.2, hold_frames=2)


@cache
def torch_model() -> Any:
    """The LSTM and its classifier, in eager torch; `forward(features, (h, c)) -> (scores, (h, c))`."""
    import torch

    class Yardstick(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(MELS, HIDDEN, LAYERS, batch_first=True)
            self.classify = torch.nn.Linear(HIDDEN, CLASSES)
            with torch.no_grad():
                self.classify.weight.mul_(96)  # or all classes would be about as probable, always: no word in it

        def forward(self, x: Any, state: Any) -> Any:
            y, after = self.lstm((x - MEAN) * SCALE, state)
            return self.classify(y).softmax(-1), after

    torch.manual_seed(5)
    return Yardstick().eval()


def gates(weights: np.ndarray) -> np.ndarray:
    """`[4H, ...]` in torch's order (i, f, g, o) to ONNX's (i, o, f, g)."""
    i, f, g, o = np.split(weights, 4)
    return np.concatenate([i, o, f, g])


def _graph(samples: bool) -> onnx.ModelProto:
    """From power spectra, or from log-mel features."""
    import librosa

    weights = {name: value.detach().numpy() for name, value in torch_model().state_dict().items()}
    constants: dict[str, np.ndarray] = {
        "mean": np.array(MEAN, np.float32),
        "scale": np.array(SCALE, np.float32),
        "direction": np.array([1], np.int64),
        "V": np.ascontiguousarray(weights["classify.weight"].T),
        "b": weights["classify.bias"],
    }
    nodes = []
    if samples:
        bank = librosa.filters.mel(sr=RATE_HZ, n_fft=WINDOW, n_mels=MELS)
        constants |= {"mel": np.ascontiguousarray(bank.T), "floor": np.array(FLOOR, np.float32)}
        nodes += [
            helper.make_node("MatMul", ["x", "mel"], ["bands"]),
            helper.make_node("Add", ["bands", "floor"], ["floored"]),
            helper.make_node("Log", ["floored"], ["features"]),
        ]
    nodes += [
        helper.make_node("Sub", ["features" if samples else "x", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["y_0"], perm=[1, 0, 2]),
        helper.make_node("Split", ["h"], [f"h_{n}" for n in range(LAYERS)], axis=0),
        helper.make_node("Split", ["c"], [f"c_{n}" for n in range(LAYERS)], axis=0),
    ]
    for n in range(LAYERS):
        constants[f"W_{n}"] = gates(weights[f"lstm.weight_ih_l{n}"])[None]
        constants[f"R_{n}"] = gates(weights[f"lstm.weight_hh_l{n}"])[None]
        biases = [gates(weights[f"lstm.bias_{kind}_l{n}"]) for kind in ("ih", "hh")]
        constants[f"B_{n}"] = np.concatenate(biases)[None]
        inputs = [f"y_{n}", f"W_{n}", f"R_{n}", f"B_{n}", "", f"h_{n}", f"c_{n}"]
        nodes += [
            helper.make_node("LSTM", inputs, [f"Y_{n}", f"hn_{n}", f"cn_{n}"], hidden_size=HIDDEN),
            helper.make_node("Squeeze", [f"Y_{n}", "direction"], [f"y_{n + 1}"]),
        ]
    nodes += [helper.make_node("Concat", [f"{s}n_{n}" for n in range(LAYERS)], [f"{s}n"], axis=0) for s in ("h", "c")]
    nodes += [
        helper.make_node("MatMul", [f"y_{LAYERS}", "V"], ["weighed"]),
        helper.make_node("Add", ["weighed", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=-1),
        helper.make_node("Transpose", ["shares"], ["scores"], perm=[1, 0, 2]),
    ]

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    states = (LAYERS, "B", HIDDEN)
    graph = helper.make_graph(
        nodes,
        "yardstick",
        [value("x", "B", "T", WINDOW // 2 + 1 if samples else MELS), value("h", *states), value("c", *states)],
        [value("scores", "B", "T", CLASSES), value("hn", *states), value("cn", *states)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _manifest(head: HeadSpec) -> Manifest:
    return Manifest(
        task="yardstick",
        labels=(*(f"word_{n}" for n in range(CLASSES - 1)), "background"),
        licence="Apache-2.0",
        provenance=Provenance(recipe="tests/bench/yardstick.py", commit="none", data_sha256="none", created="never"),
        input=InputSpec(sample_rate_hz=RATE_HZ),
        frontend=PowerFrontend(window_samples=WINDOW, hop_samples=HOP),
        model=ModelSpec(
            input="x", output="scores", features=WINDOW // 2 + 1, classes=CLASSES,
            states=tuple(
                StateSpec(input=s, output=f"{s}n", shape=(LAYERS, 1, HIDDEN), batch_axis=1) for s in ("h", "c")
            ),
        ),
        head=head,
    )  # fmt: skip


@dataclass(frozen=True)
class Files:
    """Where the yardstick lies.

    core: features in. scores: a bundle that publishes every frame's scores. words: one that publishes keywords.
    """

    core: Path
    scores: Path
    words: Path


def write(folder: Path) -> Files:
    """All three, for processes of their own to open."""
    files = Files(folder / "core.onnx", folder / "scores.onnx", folder / "words.onnx")
    whole = _graph(samples=True)
    files.core.write_bytes(_graph(samples=False).SerializeToString())
    files.scores.write_bytes(with_manifest(whole, _manifest(ScoresHead())))
    files.words.write_bytes(with_manifest(whole, _manifest(WORDS)))
    return files
