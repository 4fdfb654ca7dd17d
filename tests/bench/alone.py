"""The contenders without Redis: what the model costs at the least, in onnxruntime and in eager torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bench.cores import CORES, on
from tests.bench.yardstick import FRAMES, HIDDEN, LAYERS, MELS, torch_model

BATCHES = (1, 4, 16, 64, 256)
Once = Callable[[], None]


def onnx_steps(core: Path) -> dict[int, Once]:
    """A step of ready features, state carried, for each batch size; one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = ort.InferenceSession(str(core), options)

    def make(batch: int) -> Once:
        x = np.random.default_rng(0).normal(-8, 4, (batch, FRAMES, MELS)).astype(np.float32)
        state = {name: np.zeros((LAYERS, batch, HIDDEN), np.float32) for name in "hc"}

        def once() -> None:
            _, state["h"], state["c"] = model.run(None, {"x": x, **state})

        return once

    return {batch: make(batch) for batch in BATCHES}


def torch_steps() -> dict[int, Once]:
    """The same in eager torch."""
    import torch

    torch.set_num_threads(1)
    model = torch_model()

    def make(batch: int) -> Once:
        x = torch.from_numpy(np.random.default_rng(0).normal(-8, 4, (batch, FRAMES, MELS)).astype(np.float32))
        state = [(torch.zeros(LAYERS, batch, HIDDEN), torch.zeros(LAYERS, batch, HIDDEN))]

        def once() -> None:
            with torch.inference_mode():
                _, state[0] = model(x, state[0])

        return once

    return {batch: make(batch) for batch in BATCHES}


def turn(steps: dict[int, Once], seconds: float) -> dict[int, float]:
    """CPU us a chunk of every batch size, on the core that contenders have; `seconds` in all."""
    return {batch: measure(once, batch, seconds / len(steps)) for batch, once in steps.items()}


def measure(once: Once, batch: int, seconds: float) -> float:
    """CPU us a chunk of one batch size."""
    with on(CORES.worker):
        once()
        count, began_s, before_s = 0, time.monotonic(), time.process_time()
        while time.monotonic() - began_s < seconds:
            once()
            count += 1
        return (time.process_time() - before_s) / count / batch * 1e6
