"""The ONNX model as a component. The only place that imports onnxruntime."""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import onnxruntime as ort

from pipeline.component import Array, Field, State, fresh
from pipeline.errors import ManifestError
from pipeline.manifest import Manifest

MAX_RUN_BYTES = 4 << 30
"""What the graphs of a process may allocate, weights included. A step that wants more fails."""

MAX_LOAD_S = 60.0
MAX_STEP_S = 20.0
"""For loading a graph, and for its first step (one block of two streams); a model that needs longer serves nobody."""

Runtime = ort.InferenceSession
"""A loaded graph."""

_ELEMENT = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "float64": "tensor(double)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
}


class _Axes:
    """A graph's order of axes, `BTF` or another, to ours `[B, T, F]` and back. What is missing has length 1."""

    def __init__(self, axes: str, ours: str) -> None:
        self.axes = axes
        letters = axes.replace("1", "")
        letters += "".join(letter for letter in ours if letter not in letters)
        self._plain = axes == ours
        self._to_graph = [ours.index(letter) for letter in letters]
        self._to_ours = [letters.index(letter) for letter in ours]
        self._letters = [None if axis == "1" else ours.index(axis) for axis in axes]

    def to_graph(self, x: Array) -> Array:
        if self._plain:
            return np.ascontiguousarray(x, np.float32)
        shape = [1 if axis is None else x.shape[axis] for axis in self._letters]
        return np.ascontiguousarray(x.transpose(self._to_graph).reshape(shape), np.float32)

    def to_ours(self, y: Array) -> Array:
        """Raises ValueError: another number of axes than declared, or more than one where one was declared."""
        if self._plain and y.ndim == len(self.axes):
            return y
        if y.ndim != len(self.axes) or any(n != 1 for n, axis in zip(y.shape, self.axes, strict=True) if axis == "1"):
            raise ValueError(f"shape {list(y.shape)} is no {self.axes!r}")
        shape = [n for n, axis in zip(y.shape, self.axes, strict=True) if axis != "1"]
        return y.reshape(shape + [1] * (len(self._to_ours) - len(shape))).transpose(self._to_ours)


class OnnxModel:
    """Frames `[B, k * block, F]` to scores `[B, k * block, C]`, states carried as the manifest names them.

    In a `State`, arrays are batch-first whatever axis the graph uses: a row is one stream's slice. What a producer gave
    with the stream's first chunk is carried beside them, unchanged.
    One intra-op thread, no spinning: cores are used by more processes (DESIGN section 3), and with one
    thread a row's bytes depend neither on the batch nor on the cut.

    Raises:
        ManifestError: the bytes are no ONNX model, or the graph is not what the manifest says.
    """

    def __init__(self, runtime: ort.InferenceSession, manifest: Manifest, source: str) -> None:
        spec = manifest.model
        self.block = spec.block
        self.latency = spec.latency
        self._features = spec.features
        self._classes = spec.classes
        self._tail = spec.tail_frames + spec.latency
        self._states = spec.states
        self._given = spec.given
        self._perms = {s.input: _perms(1 + len(s.row_shape), s.batch_axis) for s in (*spec.states, *spec.given)}
        self._constants = {c.input: np.full(c.shape, c.value, c.dtype) for c in spec.constants}
        self._input = spec.input
        self._in, self._out = _Axes(spec.input_axes, "BTF"), _Axes(spec.output_axes, "BTC")
        self._one_stream, self._one_block = spec.streams_a_call == 1, spec.blocks_a_call == 1
        self._scores = (spec.output, *spec.also)
        self._outputs = [*self._scores, *(s.output for s in spec.states)]
        self._runtime = runtime
        self.fields = tuple(Field(s.input, s.dtype, s.row_shape, s.initial) for s in spec.states)
        self.given = tuple(Field(g.input, "float32", g.row_shape, g.initial) for g in spec.given)
        self.fields += self.given
        _check_graph(runtime, manifest, source)
        self._check_run(source)

    def initial_state(self, batch: int) -> State:
        return fresh(self.fields, batch)

    def split_given(self, values: Array) -> State:
        """What a producer gave one stream, float32 `[n]`, as the inputs that it is, without the batch axis.

        Raises ValueError: another number of values than the manifest's `given` holds.
        """
        sizes = [math.prod(field.shape) for field in self.given]
        if values.shape != (sum(sizes),):
            raise ValueError(f"given {list(values.shape)}; expected [{sum(sizes)}]")
        parts = np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
        return {field.name: part.reshape(field.shape) for field, part in zip(self.given, parts, strict=True)}

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        return self._step(x, state, None)

    def _step(self, x: Array, state: State, options: ort.RunOptions | None) -> tuple[Array, State]:
        if x.shape[1] == 0:  # onnxruntime's LSTM would answer no frames with a state of zeros
            return np.empty((len(x), 0, self._classes), np.float32), state
        if not self._one_stream or len(x) == 1:
            return self._together(x, state, options)
        alone = [
            self._together(x[b : b + 1], {name: array[b : b + 1] for name, array in state.items()}, options)
            for b in range(len(x))
        ]
        after = {name: np.concatenate([one[name] for _, one in alone]) for name in state}
        return np.concatenate([scores for scores, _ in alone]), after

    def _together(self, x: Array, state: State, options: ort.RunOptions | None) -> tuple[Array, State]:
        """As many streams as a call takes; as many calls as their blocks need."""
        feeds = dict(self._constants)
        for name, (to_graph, _) in self._perms.items():
            feeds[name] = np.ascontiguousarray(state[name].transpose(to_graph))
        length = self.block if self._one_block else x.shape[1]
        parts = []
        for start in range(0, x.shape[1], length):
            feeds[self._input] = self._in.to_graph(x[:, start : start + length])
            got = self._runtime.run(self._outputs, feeds, options)
            scores = [self._out.to_ours(y) for y in got[: len(self._scores)]]
            parts.append(scores[0] if len(scores) == 1 else np.concatenate(scores, axis=2))
            for spec, carried in zip(self._states, got[len(self._scores) :], strict=True):
                feeds[spec.input] = carried
        after = {spec.input: feeds[spec.input].transpose(self._perms[spec.input][1]) for spec in self._states}
        after |= {spec.input: state[spec.input] for spec in self._given}
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), after

    def flush(self, state: State) -> Array:
        """What the end of a stream still owes: the scores of `latency + tail_frames` frames of silence."""
        batch = len(next(iter(state.values())))
        if self._tail == 0:
            return np.empty((batch, 0, self._classes), np.float32)
        blocks = -(-self._tail // self.block)
        silence = np.zeros((batch, blocks * self.block, self._features), np.float32)
        return self.step(silence, state)[0][:, : self._tail]

    def _check_run(self, source: str) -> None:
        """Two streams, one block: what comes back has the shapes that were declared, and is finite. Two blocks, where
        a call takes any number: a row of scores for each frame."""
        scores, after = self._try(1, source)
        carried = [array for array in after.values() if array.dtype.kind == "f"]
        if np.isnan(scores).any() or not all(np.isfinite(array).all() for array in carried):
            raise ManifestError(
                f"{source}: one block of silence yields NaN scores, or a state of NaN or infinity: the weights, or the "
                "initial values, are damaged. Export it again"
            )
        if not self._one_block:
            self._try(2, source)

    def _try(self, blocks: int, source: str) -> tuple[Array, State]:
        state, frames = self.initial_state(2), blocks * self.block
        options = ort.RunOptions()
        options.log_severity_level = 4

        def stop(_: bool) -> None:
            options.terminate = True

        try:
            with _deadline(MAX_STEP_S, stop):
                scores, after = self._step(np.zeros((2, frames, self._features), np.float32), state, options)
        except Exception as error:  # onnxruntime raises classes of its own, one for each status code
            raise ManifestError(
                f"{source}: the graph does not run on 2 streams of {frames} frames of {self._features} (within "
                f"{MAX_STEP_S:.0f} s and {MAX_RUN_BYTES} bytes): {refused_by(error)}. "
                "Run it there with onnxruntime alone"
                + (", or say one_block, if it takes one block a call" if blocks > 1 else "")
            ) from None
        compared = [(f"output {self._outputs[0]!r}", (2, frames, self._classes), scores.shape)]
        compared += [(f"state {name!r}", array.shape, after[name].shape) for name, array in state.items()]
        wrong = [
            f"{name}: the manifest says {list(expected)}, the graph gives {list(got)}"
            for name, expected, got in compared
            if got != expected
        ]
        if wrong and blocks > 1:
            raise ManifestError(
                f"{source}: {'; '.join(wrong)}, for {blocks} blocks of {self.block} frames, though for one it fits. "
                "If a call takes one block, say one_block"
            )
        if wrong:
            raise ManifestError(f"{source}: {'; '.join(wrong)}. Write the graph's shapes into the manifest")
        return scores, after


def _perms(ndim: int, batch_axis: int) -> tuple[list[int], list[int]]:
    """Axes for `transpose`: batch first to where the graph has it, and back. (`np.moveaxis` works them out at every
    call, which takes longer than a small step's copies.)

    >>> _perms(3, 1)
    ([1, 0, 2], [1, 0, 2])
    >>> _perms(3, 2)
    ([1, 2, 0], [2, 0, 1])
    """
    to_graph = [*range(1, ndim)]
    to_graph.insert(batch_axis, 0)
    return to_graph, [to_graph.index(axis) for axis in range(ndim)]


def open_runtime(model: bytes, source: str) -> ort.InferenceSession:
    """Load a graph for one core; `onnxfile.inspect` must have passed it.

    Raises:
        ManifestError: onnxruntime refuses it, or is not done within `MAX_LOAD_S`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Batches and cuts vary from step to step: a memory pattern for every shape would only grow.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # what goes wrong is raised, and told once
    # External data would be read from wherever this process runs, and no fingerprint would cover them. Nothing can
    # lie below this path, so a graph that names some is refused.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    if _bounded_memory():
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        with _deadline(MAX_LOAD_S, options.set_load_cancellation_flag):
            # Constants are not folded: a kilobyte of Concat nodes would fold to gigabytes, and take as long.
            return ort.InferenceSession(
                model,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["ConstantFolding"],
                enable_fallback=0,  # onnxruntime would print, and try the same again
            )
    except Exception as error:  # onnxruntime raises classes of its own, one for each status code
        raise ManifestError(
            f"{source}: onnxruntime cannot load this file ({refused_by(error)}). Is it a sound ONNX model?"
        ) from None


def fold(model: bytes, source: str) -> bytes:
    """The same graph with its constant parts computed, as onnxruntime itself does when it loads a model.

    `open_runtime` does not, for safety (see there), and kernels that want constant weights would then be others, with
    other last bits, than in a program that loads the file plainly. So a model is folded once, when it is adopted, by
    whoever trusts it.

    Raises:
        ManifestError: onnxruntime refuses it, or is not done within `MAX_LOAD_S`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = os.path.join(folder, "folded.onnx")
        try:
            with _deadline(MAX_LOAD_S, options.set_load_cancellation_flag):
                ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
            with open(options.optimized_model_filepath, "rb") as file:
                return file.read()
        except Exception as error:  # onnxruntime raises classes of its own, one for each status code
            raise ManifestError(f"{source}: onnxruntime cannot load this file ({refused_by(error)})") from None


@cache
def _bounded_memory() -> bool:
    """Bound what graphs of this process may allocate, together; False where another library registered its own."""
    about = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(about, ort.OrtArenaCfg({"max_mem": MAX_RUN_BYTES}))
    except RuntimeError:
        return False
    return True


@contextmanager
def _deadline(seconds: float, set_flag: Callable[[bool], None]) -> Iterator[None]:
    """Tell onnxruntime to stop after so long; it looks between two operators."""
    watchdog = threading.Timer(seconds, set_flag, (True,))
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def refused_by(error: Exception) -> str:
    """onnxruntime's reason in one line."""
    return " ".join(str(error).split())[:400]


def _check_graph(runtime: ort.InferenceSession, manifest: Manifest, source: str) -> None:
    spec = manifest.model
    try:
        inputs = {node.name: node for node in runtime.get_inputs()}
        outputs = {node.name: node for node in runtime.get_outputs()}
    except UnicodeDecodeError as error:
        raise ManifestError(f"{source}: the graph has a name that is no text ({error}). Is the file damaged?") from None
    lengths: dict[str, int | str] = {
        "B": spec.streams_a_call or "B",
        "T": spec.block if spec.blocks_a_call else "T",
        "F": spec.features,
        "1": 1,
    }
    expected: dict[str, tuple[str, list[int | str]]] = {
        spec.input: ("float32", [lengths[axis] for axis in spec.input_axes])
    }
    for s in spec.states:
        expected[s.input] = (s.dtype, [*s.shape[: s.batch_axis], lengths["B"], *s.shape[s.batch_axis + 1 :]])
    for g in spec.given:
        expected[g.input] = ("float32", [*g.shape[: g.batch_axis], lengths["B"], *g.shape[g.batch_axis + 1 :]])
    for c in spec.constants:
        expected[c.input] = (c.dtype, list(c.shape))
    yields = {spec.output: "float32", **dict.fromkeys(spec.also, "float32"), **{s.output: s.dtype for s in spec.states}}
    if set(inputs) != set(expected):
        raise ManifestError(f"{source}: the graph's inputs are {sorted(inputs)}, the manifest names {sorted(expected)}")
    if not set(yields) <= set(outputs):
        raise ManifestError(f"{source}: the graph's outputs are {sorted(outputs)}, the manifest names {sorted(yields)}")
    for name, (dtype, shape) in expected.items():
        node = inputs[name]
        fits = len(node.shape) == len(shape) and all(
            not isinstance(have, int) or have == want for have, want in zip(node.shape, shape, strict=True)
        )
        if node.type != _ELEMENT[dtype] or not fits:
            raise ManifestError(
                f"{source}: input {name!r} is {node.type} {node.shape} in the graph, {dtype} {shape} in the manifest. "
                "Where the graph has a fixed number of streams or frames, say one_stream or one_block"
            )
    for name, dtype in yields.items():
        if outputs[name].type != _ELEMENT[dtype]:
            raise ManifestError(
                f"{source}: output {name!r} is {outputs[name].type} in the graph, expected {dtype}"
                + (" as its state in the manifest" if name not in (spec.output, *spec.also) else " (scores are)")
            )
