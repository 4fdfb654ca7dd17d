"""Small bundles of every shape that the runtime claims to carry, with random weights, built with onnx alone.

Registering one here puts it under the whole contract. They are written from the ONNX operator definitions,
not by our exporter, so that the two cannot agree on the same mistake; those of our exporter are in `tests/nets.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle import SHIPPED, Bundle, from_bytes
from pipeline.manifest import (
    METADATA_KEY,
    ActivityHead,
    AnomalyHead,
    ForecastHead,
    GivenSpec,
    HeadSpec,
    IdentityFrontend,
    InputSpec,
    KeywordsHead,
    Manifest,
    ModelSpec,
    OverlapAddHead,
    PowerFrontend,
    Provenance,
    ScoresHead,
    SegmentsHead,
    StateSpec,
    WindowFrontend,
)
from tests import nets

FLOAT = TensorProto.FLOAT
PROVENANCE = Provenance(recipe="tests/zoo.py", commit="none", data_sha256="none", created="never")


def _weights(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    scale = 2.5 / np.sqrt(shape[-1])
    return numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name)


def _recurrent(
    op: str, features: int, hidden: int, classes: int, *, mel: bool, block: int, lean: float = 2.0
) -> onnx.ModelProto:
    """x -> [filterbank, log] -> [group `block` frames] -> LSTM or GRU -> linear -> softmax, textbook layout."""
    rng = np.random.default_rng(features * 1000 + hidden)
    gates = {"LSTM": 4, "GRU": 3}[op]
    states = ["h", "c"] if op == "LSTM" else ["h"]
    bands = 16 if mel else features  # a multiple of 4: onnxruntime's Log is not exact over cuts otherwise
    wide = bands * block
    init = [
        _weights(rng, "W", 1, gates * hidden, wide),
        _weights(rng, "R", 1, gates * hidden, hidden),
        _weights(rng, "bias", 1, 2 * gates * hidden),
        _weights(rng, "V", hidden, classes * block),
        # towards background, the last class, so that words come and go
        numpy_helper.from_array(np.array([0.0] * (classes - 1) + [lean], np.float32), "lean"),
        numpy_helper.from_array(np.array([1], np.int64), "axis_1"),
        numpy_helper.from_array(np.array(1e-6, np.float32), "floor"),
        numpy_helper.from_array(np.array([0, -1, wide], np.int64), "grouped"),
        numpy_helper.from_array(np.array([0, -1, classes], np.int64), "ungrouped"),
    ]
    nodes = []
    x = "x"
    if mel:
        init.append(numpy_helper.from_array(np.abs(rng.standard_normal((features, bands))).astype(np.float32), "mel"))
        nodes += [helper.make_node("MatMul", [x, "mel"], ["bands"])]
        nodes += [
            helper.make_node("Max", ["bands", "floor"], ["floored"]),
            helper.make_node("Log", ["floored"], ["raw_log"]),
        ]
        init.append(numpy_helper.from_array(rng.normal(-3, 2, bands).astype(np.float32), "offset"))
        nodes += [helper.make_node("Add", ["raw_log", "offset"], ["log"])]
        x = "log"
    nodes += [
        helper.make_node("Reshape", [x, "grouped"], ["blocks"]),
        helper.make_node("Transpose", ["blocks"], ["time_first"], perm=[1, 0, 2]),
        helper.make_node(
            op,
            ["time_first", "W", "R", "bias", "", *states],
            ["Y", *(f"{s}n" for s in states)],
            hidden_size=hidden,
            **({"linear_before_reset": 1} if op == "GRU" else {}),
        ),
        helper.make_node("Squeeze", ["Y", "axis_1"], ["y_time_first"]),
        helper.make_node("Transpose", ["y_time_first"], ["y"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["y", "V"], ["logits_grouped"]),
        helper.make_node("Reshape", ["logits_grouped", "ungrouped"], ["logits"]),
        helper.make_node("Add", ["logits", "lean"], ["leaning"]),
        helper.make_node("Softmax", ["leaning"], ["scores"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        op,
        [helper.make_tensor_value_info("x", FLOAT, ["B", "T", features])]
        + [helper.make_tensor_value_info(s, FLOAT, [1, "B", hidden]) for s in states],
        [helper.make_tensor_value_info("scores", FLOAT, ["B", "T", classes])]
        + [helper.make_tensor_value_info(f"{s}n", FLOAT, [1, "B", hidden]) for s in states],
        init,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


LOOK_AHEAD = 3
LOOK_AHEAD_TAPS = np.array([0.5, -1.0, 2.0, 1.0, -0.5, 0.25, 3.0], np.float32)


def _look_ahead(features: int) -> onnx.ModelProto:
    """y[t] = sum over j of taps[j] * x[t - 3 + j]: sees three frames ahead, so it answers three frames late."""
    taps = len(LOOK_AHEAD_TAPS)
    init = [numpy_helper.from_array(np.array(v, np.float32), f"tap_{j}") for j, v in enumerate(LOOK_AHEAD_TAPS)]
    nodes = [helper.make_node("Concat", ["past", "x"], ["wide"], axis=1)]
    terms = []
    for j in range(taps):
        stop = j - taps + 1 if j < taps - 1 else np.iinfo(np.int64).max
        for name, value in (("from", j), ("to", stop)):
            init.append(numpy_helper.from_array(np.array([value], np.int64), f"{name}_{j}"))
        nodes.append(helper.make_node("Slice", ["wide", f"from_{j}", f"to_{j}", "axis_1"], [f"slice_{j}"]))
        nodes.append(helper.make_node("Mul", [f"slice_{j}", f"tap_{j}"], [f"term_{j}"]))
        terms.append(f"term_{j}")
    init.append(numpy_helper.from_array(np.array([1], np.int64), "axis_1"))
    init.append(numpy_helper.from_array(np.array([-(taps - 1)], np.int64), "keep_from"))
    init.append(numpy_helper.from_array(np.array([np.iinfo(np.int64).max], np.int64), "keep_to"))
    nodes.append(helper.make_node("Sum", terms, ["scores"]))
    nodes.append(helper.make_node("Slice", ["wide", "keep_from", "keep_to", "axis_1"], ["past_n"]))
    graph = helper.make_graph(
        nodes,
        "look_ahead",
        [
            helper.make_tensor_value_info("x", FLOAT, ["B", "T", features]),
            helper.make_tensor_value_info("past", FLOAT, ["B", taps - 1, features]),
        ],
        [
            helper.make_tensor_value_info("scores", FLOAT, ["B", "T", features]),
            helper.make_tensor_value_info("past_n", FLOAT, ["B", taps - 1, features]),
        ],
        init,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _stepper(
    name: str, window: int, hidden: int, classes: int, streams: int | str, axes: str, scores: list[onnx.NodeProto]
) -> onnx.ModelProto:
    """A graph that was exported for a stream that comes: one window a call, a GRU, and what `scores` makes of the
    window `x` and of the logits."""
    rng = np.random.default_rng(window)
    sizes: dict[str, int | str] = {"B": streams, "T": 1, "F": window, "C": classes}
    init = [
        _weights(rng, "W", 1, 3 * hidden, window),
        _weights(rng, "R", 1, 3 * hidden, hidden),
        _weights(rng, "bias", 1, 6 * hidden),
        _weights(rng, "V", hidden, classes),
        numpy_helper.from_array(np.array([1, -1, window], np.int64), "one_window"),
        numpy_helper.from_array(np.array([-1, hidden], np.int64), "flat"),
        numpy_helper.from_array(np.array(40, np.float32), "loud"),
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "one_window"], ["windows"]),
        helper.make_node("Mul", ["windows", "loud"], ["louder"]),
        helper.make_node(
            "GRU", ["louder", "W", "R", "bias", "", "h"], ["", "hn"], hidden_size=hidden, linear_before_reset=1
        ),
        helper.make_node("Reshape", ["hn", "flat"], ["last"]),
        helper.make_node("MatMul", ["last", "V"], ["logits"]),
        *scores,
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [
            helper.make_tensor_value_info("x", FLOAT, [sizes[axis] for axis in axes]),
            helper.make_tensor_value_info("h", FLOAT, [1, streams, hidden]),
        ],
        [
            helper.make_tensor_value_info("scores", FLOAT, [sizes[axis] for axis in axes.replace("F", "C")]),
            helper.make_tensor_value_info("hn", FLOAT, [1, streams, hidden]),
        ],
        init,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def with_manifest(model: onnx.ModelProto, manifest: Manifest) -> bytes:
    """The bytes of a bundle."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    helper.set_model_props(copy, {METADATA_KEY: manifest.to_json()})
    return bytes(copy.SerializeToString())


def _states(op: str, hidden: int) -> tuple[StateSpec, ...]:
    names = ["h", "c"] if op == "LSTM" else ["h"]
    return tuple(StateSpec(input=s, output=f"{s}n", shape=(1, 1, hidden), batch_axis=1) for s in names)


def _labels(classes: int) -> tuple[str, ...]:
    return (*(f"class_{c}" for c in range(classes - 1)), "background")


WORDS = KeywordsHead(background="background", smooth_frames=3, threshold=0.5, release=0.4, hold_frames=1)


def audio() -> bytes:
    """16 kHz audio, a hop that divides nothing, an LSTM, a keywords head that fires often, a tail."""
    hidden, classes, window = 24, 4, 200
    manifest = Manifest(
        task="test audio",
        labels=_labels(classes),
        licence="Apache-2.0",
        provenance=PROVENANCE,
        input=InputSpec(sample_rate_hz=16_000),
        frontend=PowerFrontend(window_samples=window, hop_samples=77),
        model=ModelSpec(
            input="x", output="scores", features=window // 2 + 1, classes=classes,
            states=_states("LSTM", hidden), tail_frames=5,
        ),
        head=WORDS,
    )  # fmt: skip
    return with_manifest(_recurrent("LSTM", window // 2 + 1, hidden, classes, mel=True, block=1), manifest)


def _identity(op: str, *, channels: int, rate: float, hidden: int, block: int, head: HeadSpec, task: str) -> bytes:
    classes = 5
    manifest = Manifest(
        task=task,
        labels=_labels(classes),
        licence="Apache-2.0",
        provenance=PROVENANCE,
        input=InputSpec(sample_rate_hz=rate, channels=channels, sample_type="float32"),
        frontend=IdentityFrontend(),
        model=ModelSpec(
            input="x", output="scores", features=channels, classes=classes, states=_states(op, hidden), block=block
        ),
        head=head,
    )
    return with_manifest(_recurrent(op, channels, hidden, classes, mel=False, block=block), manifest)


def sensor() -> bytes:
    """Six sensor channels at 50 Hz, a GRU, every frame's scores as results."""
    return _identity("GRU", channels=6, rate=50, hidden=16, block=1, head=ScoresHead(), task="test sensor")


def spectrogram() -> bytes:
    """Spectrogram frames that a producer computed, 20 bins at 100 Hz, four frames a block, words."""
    return _identity("LSTM", channels=20, rate=100, hidden=16, block=4, head=WORDS, task="test spectrogram")


def look_ahead() -> bytes:
    """A model that trails by three frames, two channels."""
    manifest = Manifest(
        task="test look-ahead",
        labels=("a", "b"),
        licence="Apache-2.0",
        provenance=PROVENANCE,
        input=InputSpec(sample_rate_hz=10, channels=2, sample_type="float32"),
        frontend=IdentityFrontend(),
        model=ModelSpec(
            input="x", output="scores", features=2, classes=2, latency=LOOK_AHEAD,
            states=(StateSpec(input="past", output="past_n", shape=(1, 6, 2), batch_axis=0),),
        ),
        head=ScoresHead(),
    )  # fmt: skip
    return with_manifest(_look_ahead(2), manifest)


def vad() -> bytes:
    """Windows that overlap, a hop that divides nothing, one window a call of any number of streams; segments."""
    window, hidden = 100, 12
    scores = [helper.make_node("Sigmoid", ["logits"], ["scores"])]
    manifest = Manifest(
        task="test vad",
        labels=("quiet", "loud"),
        licence="Apache-2.0",
        provenance=PROVENANCE,
        input=InputSpec(sample_rate_hz=16_000),
        frontend=WindowFrontend(window_samples=window, hop_samples=77),
        model=ModelSpec(
            input="x", output="scores", features=window, classes=2, states=_states("GRU", hidden),
            input_axes="BF", output_axes="BC", tail_frames=2,
        ),
        head=SegmentsHead(
            label="noise", column=1, threshold=0.5, negative_threshold=0.35,
            min_speech_samples=100, min_silence_samples=100, pad_samples=50,
        ),
    )  # fmt: skip
    return with_manifest(_stepper("vad", window, hidden, 2, "B", "BF", scores), manifest)


def denoise() -> bytes:
    """Windows in, windows out, that are added up again; exported for one stream and one window a call."""
    window, hidden = 64, 20
    scores = [
        helper.make_node("Sigmoid", ["logits"], ["gains"]),
        helper.make_node("Mul", ["x", "gains"], ["scores"]),  # [1, 1, window] by [1, window]
    ]
    manifest = Manifest(
        task="test denoise",
        labels=tuple(f"sample_{n}" for n in range(window)),
        licence="Apache-2.0",
        provenance=PROVENANCE,
        input=InputSpec(sample_rate_hz=8_000, sample_type="float32"),
        frontend=WindowFrontend(window_samples=window, hop_samples=16),
        model=ModelSpec(
            input="x", output="scores", features=window, classes=window, states=_states("GRU", hidden),
            one_stream=True, one_block=True, tail_frames=2,
        ),
        head=OverlapAddHead(),
    )  # fmt: skip
    return with_manifest(_stepper("denoise", window, hidden, window, 1, "BTF", scores), manifest)


def activity() -> bytes:
    """Six sensor channels at 50 Hz in windows, a GRU, stretches of one label."""
    window, hidden, classes = 16, 16, 5
    manifest = Manifest(
        task="test activity",
        labels=_labels(classes),
        licence="Apache-2.0",
        provenance=PROVENANCE,
        input=InputSpec(sample_rate_hz=50, channels=6, sample_type="float32"),
        frontend=WindowFrontend(window_samples=window, hop_samples=4),
        model=ModelSpec(
            input="x", output="scores", features=6 * window, classes=classes, states=_states("GRU", hidden)
        ),
        head=ActivityHead(hold_frames=3),
    )  # fmt: skip
    return with_manifest(_recurrent("GRU", 6 * window, hidden, classes, mel=False, block=1, lean=0.3), manifest)


def forecast() -> bytes:
    """Two series, one sample an hour, the next three of each, every fourth hour."""
    head = ForecastHead(series=("a", "b"), horizon=3, every_frames=4, context_frames=10)
    manifest = Manifest(
        task="test forecast",
        labels=head.labels,
        licence="Apache-2.0",
        provenance=PROVENANCE,
        input=InputSpec(sample_rate_hz=1 / 3600, channels=2, sample_type="float32"),
        frontend=IdentityFrontend(),
        model=ModelSpec(input="x", output="scores", features=2, classes=6, states=_states("LSTM", 8)),
        head=head,
    )
    return with_manifest(_recurrent("LSTM", 2, 8, 6, mel=False, block=1), manifest)


GIVEN = 8


def given() -> bytes:
    """A GRU over two channels plus what the producer gave the stream, `[B, 8]` projected to `[B, 1, 2]`."""
    hidden, channels, classes = 16, 2, 5
    model = _recurrent("GRU", channels, hidden, classes, mel=False, block=1)
    graph = model.graph
    graph.node[0].input[0] = "told"
    first = [
        helper.make_node("MatMul", ["speaker", "projection"], ["projected"]),
        helper.make_node("Unsqueeze", ["projected", "axis_1"], ["everywhere"]),
        helper.make_node("Add", ["x", "everywhere"], ["told"]),
    ]
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("speaker", FLOAT, ["B", GIVEN]))
    graph.initializer.append(_weights(np.random.default_rng(8), "projection", GIVEN, channels))
    manifest = Manifest(
        task="test given",
        labels=_labels(classes),
        licence="Apache-2.0",
        provenance=PROVENANCE,
        input=InputSpec(sample_rate_hz=50, channels=channels, sample_type="float32"),
        frontend=IdentityFrontend(),
        model=ModelSpec(
            input="x", output="scores", features=channels, classes=classes, states=_states("GRU", hidden),
            given=(GivenSpec(input="speaker", shape=(1, GIVEN), batch_axis=0),),
        ),
        head=ScoresHead(),
    )  # fmt: skip
    return with_manifest(model, manifest)


def alarm() -> bytes:
    """Two sensor channels, and stretches in which one score stands out, by a threshold that runs with the stream."""
    head = AnomalyHead(column=1, threshold=0.2, rise=1.1, memory_frames=30, learn_frames=4, hold_frames=3)
    return _identity("GRU", channels=2, rate=1 / 60, hidden=16, block=1, head=head, task="test alarm")


ZOO: dict[str, Callable[[], bytes]] = {
    "audio": audio,
    "sensor": sensor,
    "spectrogram": spectrogram,
    "look_ahead": look_ahead,
    "given": given,
    "vad": vad,
    "activity_head": activity,
    "forecast_head": forecast,
    "anomaly_head": alarm,
    "denoise": denoise,
    **nets.BUNDLES,
    **{path.stem: path.read_bytes for path in sorted(Path(SHIPPED).glob("*.onnx"))},
}


@cache
def bundle(name: str) -> Bundle:
    """A bundle of the zoo, opened once."""
    return from_bytes(ZOO[name](), f"zoo:{name}")


def signal(spec: InputSpec, samples: int, seed: int = 0) -> np.ndarray:
    """A lively random signal `[samples, channels]` of the sample type: bursts, silence, clipping."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, spec.channels)).astype(np.float32)
    burst = max(50, int(spec.sample_rate_hz / 50))
    x *= np.repeat(rng.random(-(-samples // burst)) ** 4, burst)[:samples, None].astype(np.float32)
    if spec.sample_type == "int16":
        return np.clip(x * 20_000, -32768, 32767).astype(np.int16)
    return x
