"""Small nets of every architecture in `training.models`, with random weights, as bundles of the zoo.

These come from our exporter; that it writes what the textbooks say is `tests/unit/test_models.py`'s matter. Without
torch there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.manifest import IdentityFrontend, InputSpec, Manifest, PowerFrontend, Provenance, ScoresHead

if TYPE_CHECKING:
    from training.models import Net

CLASSES, MELS, CHANNELS, WINDOW, HOP = 5, 12, 6, 64, 40

OPTIONS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "lstm": {},
    "lstm_coupled": {},
    "lstm_peephole": {},
    "gru": {},
    "bilstm": {"block_frames": 4, "ahead_frames": 3},
    "cnn": {"taps": 3, "dilations": (1, 2)},
    "crnn": {"channels": (4, 8), "taps": (3, 2), "bands": (4, 2)},
    "attention": {"heads": 2, "window_frames": 8},
}
SENSORS = ("rnn", "lstm_peephole", "gru")
"""These take channels as they are; the others log-mel frames."""


def net(cell: str, *, layers: int = 2, hidden: int = 12, seed: int = 3, gain: float = 2.0, **options: Any) -> Net:
    """A lively net: weights `gain` times what training begins with, and normalisations that have seen something."""
    import torch

    from training import augment
    from training.models import LogMel, Net, Standardise, encoder

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        if cell in SENSORS:
            front: LogMel | Standardise = Standardise(CHANNELS)
        else:
            front = LogMel(augment.filterbank(8000, WINDOW, MELS))
            front.fit(torch.randn(1000, MELS) * 3 - 4)
        made = Net(front, encoder(cell, front.outputs, layers, hidden, **{**OPTIONS[cell], **options}), CLASSES)
        for parameter in made.parameters():
            parameter.mul_(gain).add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in made.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.3, 2.0)
    return made.eval()


def bundled(cell: str, made: Net | None = None) -> bytes:
    """A net as a bundle, every frame's scores as results."""
    from training.graph import graph, model_spec, with_manifest

    made = made or net(cell)
    sensors = cell in SENSORS
    manifest = Manifest(
        task=f"test {cell}",
        labels=tuple(f"class_{n}" for n in range(CLASSES)),
        licence="Apache-2.0",
        provenance=Provenance(recipe="tests/nets.py", commit="none", data_sha256="none", created="never"),
        input=InputSpec(sample_rate_hz=50, channels=CHANNELS, sample_type="float32")
        if sensors
        else InputSpec(sample_rate_hz=8000),
        frontend=IdentityFrontend() if sensors else PowerFrontend(window_samples=WINDOW, hop_samples=HOP),
        model=model_spec(made),
        head=ScoresHead(),
    )
    return with_manifest(graph(made), manifest)


BUNDLES: dict[str, Callable[[], bytes]] = {}
if find_spec("torch") and find_spec("librosa"):
    BUNDLES = {f"net_{cell}": partial(bundled, cell) for cell in OPTIONS}
