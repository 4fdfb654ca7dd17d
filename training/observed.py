"""One recording through a bundle, observed: its layers' gates, its scores, how far back its last answer depends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bundle import Bundle
from pipeline.component import Array, as_float
from pipeline.errors import ConfigError
from pipeline.offline import run
from pipeline.output import Event
from training.unrolled import KINDS, Ran, Unrolled

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Observed:
    """What `observe` found, over T frames of one recording.

    signal: `[N, channels]` at rate_hz. features: `[T, M]`, by kind: "log-mel bands" where the graph takes a logarithm,
    else what is "fed to the first layer", and without any layer the frontend's "frames". layers: every recurrent layer,
    its parts `[T, H]` by name. scores: `[T, C]` by onnxruntime, in chunks; events: likewise. reach: `[T]`, the norm of
    the gradient of the last answer (named by `answer`) to what the first recurrent layer was fed at each frame; None
    where there is none. apart: the largest difference between a score of onnxruntime and the one recomputed here.
    """

    signal: Array
    rate_hz: float
    features: Values
    kind: str
    layers: list[tuple[str, dict[str, Values]]]
    scores: Values
    events: list[Event]
    reach: Values | None
    answer: str
    apart: float


def observe(
    bundle: Bundle, model: onnx.ModelProto, samples: Array, chunk_samples: int, rate_hz: float | None = None
) -> Observed:
    """Run a recording twice: by onnxruntime in chunks, and unrolled.

    Args:
        rate_hz: of the samples, for a bundle of any rate; None: the bundle's.

    Raises:
        ConfigError: no whole frame; an operator that `training.unrolled` does not know; a model with other axes.
    """
    streamed = run(bundle, samples, chunk_samples=chunk_samples, rate_hz=rate_hz)
    rate_hz = rate_hz or bundle.manifest.input.sample_rate_hz
    signal = as_float(np.asarray(samples).reshape(1, -1, bundle.manifest.input.channels))
    whole = bundle.frontend.block * bundle.model.block
    cut = signal[:, : signal.shape[1] // whole * whole]
    frames, _ = bundle.frontend.step(cut, bundle.frontend.initial_state(1))
    if not frames.shape[1]:
        raise ConfigError(f"{signal.shape[1]} samples hold no whole block of {bundle.source}")
    if not any(node.op_type in KINDS for node in model.graph.node):
        # Nothing recurrent by name (a CNN, attention, a Scan of its own): what is left to draw is what it was given.
        scores = streamed.scores[: frames.shape[1]]
        return Observed(signal[0], rate_hz, frames[0], "frames", [], scores, streamed.events, None, "", 0.0)
    ran = _unrolled(bundle, model, torch.from_numpy(np.ascontiguousarray(frames)))
    says = _own_scores(bundle, ran)
    got = streamed.scores[: max(0, len(says) - bundle.model.latency)]
    apart = float(np.abs(says[bundle.model.latency :] - got).max(initial=0.0))
    logs = [step.values[name] for step in ran for name in _logarithms(model)]
    fed = [step.layers[0].x for step in ran]
    features, of = (_joined(logs, 1), "log-mel bands") if logs else (_joined(fed, 0), "fed to the first layer")
    reach, answer = _reach(bundle, ran)
    layers = [
        (one.kind, {name: _joined([step.layers[n].parts[name] for step in ran], 0) for name in one.parts})
        for n, one in enumerate(ran[0].layers)
    ]
    # A net with look-ahead runs its layers over some frames twice: what is drawn is the run that is carried on.
    layers = [(kind, parts) for kind, parts in layers if len(parts["hidden"]) == frames.shape[1]]
    scores = streamed.scores[: frames.shape[1]]
    return Observed(signal[0], rate_hz, features, of, layers, scores, streamed.events, reach, answer, apart)


def read_model(bundle: Bundle, path: Path) -> onnx.ModelProto:
    """The graph of a bundle that was opened from this file."""
    model = onnx.load(str(path))
    if any(
        axes not in ("BTF", "BTC") for axes in (bundle.manifest.model.input_axes, bundle.manifest.model.output_axes)
    ):
        raise ConfigError(f"{path}: axes other than [B, T, F] are not known here")
    return model


def _unrolled(bundle: Bundle, model: onnx.ModelProto, frames: Tensor) -> list[Ran]:
    """The graph over all frames: in one call, or a block at a time where it takes no more."""
    spec, graph = bundle.manifest.model, Unrolled(model)
    carried = {name: torch.from_numpy(value) for name, value in bundle.model.initial_state(1).items()}
    feeds = {s.input: carried[s.input].movedim(0, s.batch_axis) for s in spec.states}
    length = bundle.model.block if spec.blocks_a_call == 1 else frames.shape[1]
    constants = {c.input: torch.full(c.shape, c.value, dtype=getattr(torch, c.dtype)) for c in spec.constants}
    ran: list[Ran] = []
    for x in torch.split(frames, length, dim=1):
        ran.append(graph.run({**constants, **feeds, spec.input: x.requires_grad_(True)}))
        feeds = {s.input: ran[-1].values[s.output] for s in spec.states}
    return ran


def _own_scores(bundle: Bundle, ran: list[Ran]) -> Values:
    spec = bundle.manifest.model
    parts = [torch.cat([step.values[name] for name in (spec.output, *spec.also)], dim=2) for step in ran]
    return _joined(parts, 1)


def _joined(parts: list[Tensor], axis: int) -> Values:
    """The one stream's rows over time, `[T, ...]`: `axis` is that of time, the other of the first two the batch."""
    row = torch.cat(parts, dim=axis).select(1 - axis, 0)
    return np.asarray(row.detach().numpy(), np.float32)


def _logarithms(model: onnx.ModelProto) -> list[str]:
    """What comes out of the first Log, if any: the log-mel bands."""
    return [node.output[0] for node in model.graph.node if node.op_type == "Log"][:1]


def _reach(bundle: Bundle, ran: list[Ran]) -> tuple[Values | None, str]:
    """(the gradient's norm at each frame, of what): the highest value of the last row, before the last activation.

    A probability near 1 has no slope left, whatever it rests on; hence before.
    """
    if not ran[0].layers:
        return None, ""
    last, classes = ran[-1], bundle.manifest.model.classes
    scores = last.values[bundle.manifest.model.output]
    rows = scores if last.logits is None or last.logits.shape[-1] < scores.shape[-1] else last.logits
    row = rows.reshape(-1, rows.shape[-1])[-1]  # one stream: the last row is the last, [B, T, C] or [T, B, C]
    best = int(row.argmax())
    fed = [step.layers[0].x for step in ran]
    gradients = torch.autograd.grad(row[best], fed, allow_unused=True)
    norms = [x.new_zeros(len(x)) if g is None else g[:, 0].norm(dim=-1) for x, g in zip(fed, gradients, strict=True)]
    label = bundle.manifest.labels[best] if len(row) == classes and bundle.manifest.labels else "the highest class"
    return np.asarray(torch.cat(norms).detach().numpy(), np.float32), label


def memory(kind: str, parts: dict[str, Values]) -> Values:
    """What a layer remembers with, `[T, H]`: an LSTM's cell state, else the hidden state."""
    return parts["cell" if kind == "LSTM" else "hidden"]


def liveliest(kind: str, parts: dict[str, Values], count: int) -> list[int]:
    """The units whose memory varies most over the recording, in order of their numbers."""
    return sorted(np.argsort(memory(kind, parts).var(axis=0))[::-1][:count].tolist())
