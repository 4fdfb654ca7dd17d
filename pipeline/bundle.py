"""A bundle: one `.onnx` file, opened. Manifest, frontend, model and head, ready to run."""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import frontend as frontends
from pipeline import head as heads
from pipeline.component import Array, as_float
from pipeline.errors import ManifestError
from pipeline.frontend import Frontend
from pipeline.head import Events, Head, OverlapAdd
from pipeline.manifest import METADATA_KEY, Manifest
from pipeline.model import OnnxModel, open_runtime
from pipeline.onnxfile import inspect
from pipeline.regular import kind

SHIPPED = Path(__file__).parent / "bundles"
MAX_BUNDLE_BYTES = 512 << 20
"""128 million weights of float32. A file is read whole, and onnxruntime holds several times as much while it loads."""

_PROBE_BLOCKS = 32
"""A third to a whole second of audio: thousands of sums, each of which may be off by a bit where another adds up."""


class Forward(NamedTuple):
    """What a whole signal of N samples yields: events; scores `[T, C]` of all frames, the tail's included; audio `[N]`
    float32 of a head that makes some, else None."""

    events: Events
    scores: Array
    samples: Array | None


@dataclass(frozen=True)
class Bundle:
    """What `load` returns.

    Attributes:
        manifest: the typed manifest inside the file.
        fingerprint: 16 bytes that change with any byte of the file; every row begins with them.
        size_bytes: of the file.
        source: where it came from, for messages.
    """

    manifest: Manifest
    frontend: Frontend
    model: OnnxModel
    head: Head
    fingerprint: bytes
    size_bytes: int
    source: str

    def forward(self, samples: Array, given: Array | None = None) -> Forward:
        """The whole signal at once: the oracle that every stream is held against.

        Args:
            samples: `[N]` or `[N, channels]`, of the manifest's sample type.
            given: float32 `[n]`, what a producer gives the stream before its first samples (the manifest's `given`).
        """
        x = as_float(np.asarray(samples).reshape(1, -1, self.manifest.input.channels))
        length = x.shape[1]
        whole = self.frontend.block * self.model.block
        tail = self.head.tail_samples
        x = np.pad(x, ((0, 0), (0, tail + -(length + tail) % whole), (0, 0)))
        frames, _ = self.frontend.step(x, self.frontend.initial_state(1))
        state = self.model.initial_state(1)
        if given is not None:
            state |= {name: value[None] for name, value in self.model.split_given(given).items()}
        empty = np.empty((1, 0, self.manifest.model.classes), np.float32)
        scores, state = self.model.step(frames, state) if frames.shape[1] else (empty, state)
        scores = np.concatenate([scores, self.model.flush(state)], axis=1)[:, self.model.latency :]
        if isinstance(self.head, OverlapAdd):
            audio, pending = self.head.step(scores, self.head.initial_state(1))
            joined = np.concatenate([audio, self.head.flush(pending)], axis=1)[0, self.head.lead_samples :]
            return Forward(Events.none(), scores[0], joined[:length])
        events, after = self.head.step(scores, self.head.initial_state(1))
        last = self.head.flush(after)
        joined_events = Events(*(np.concatenate(columns) for columns in zip(events, last, strict=True)))
        return Forward(joined_events, scores[0], None)

    def arithmetic(self) -> str:
        """What this machine makes of the bundle, to the last bit: eight hex digits of the scores of a fixed signal.

        Where two machines differ in it (another instruction set, another onnxruntime, spectra that were compiled here
        and not there), so do the last bits of what a stream yields on them.
        """
        spec = self.manifest.input
        count = _PROBE_BLOCKS * self.frontend.block * self.model.block
        noise = np.random.RandomState(0).randint(-8192, 8192, (count, spec.channels)).astype(np.int16)
        found = self.forward(noise if spec.sample_type == "int16" else as_float(noise))
        values = found.scores if found.samples is None else found.samples
        return f"{zlib.crc32(values.tobytes()):08x}"


def load(bundle: str | Path) -> Bundle:
    """Open a bundle: a path, or the name of a shipped one.

    Raises:
        ManifestError: not there, not an ONNX file, not a bundle, or not what its manifest says.

    >>> load("digits").manifest.input.sample_rate_hz
    8000.0
    """
    if not isinstance(bundle, str | os.PathLike):
        raise ManifestError(
            f"load was given {type(bundle).__name__} ({str(bundle)[:80]}); expected a path to an .onnx file, or a "
            f"shipped name: {_shipped()}"
        )
    path = Path(bundle)
    if path.name == str(bundle) and not path.suffix and not os.path.isfile(path):
        path = SHIPPED / f"{bundle}.onnx"
    wanted = f"a path to an .onnx file, or a shipped name: {_shipped()}"
    model = _read(path, f"bundle at {str(bundle)[:200]!r}", wanted)
    return from_bytes(model, str(path)[:200])


def _shipped() -> str:
    return ", ".join(sorted(path.stem for path in SHIPPED.glob("*.onnx"))) or "none"


def read_model(path: Path) -> bytes:
    """An .onnx file's bytes. Raises ManifestError: not there, no regular file, or more than `MAX_BUNDLE_BYTES`."""
    return _read(path, f"model at {str(path)[:200]!r}", "a path to an .onnx file")


def _read(path: Path, asked: str, wanted: str) -> bytes:
    """A regular file's bytes, at most `MAX_BUNDLE_BYTES` of them whatever it said of its size.

    `asked` and `wanted` are for messages: what was looked for, and what is to be given.
    """
    try:
        # Not waiting for a FIFO's other end; what a name stood for may have changed since anybody looked.
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise ManifestError(f"no {asked}. Give {wanted}") from None
        raise ManifestError(f"the {asked} cannot be read: {error}. Give a path to an .onnx file that can") from None
    try:
        about = os.fstat(opened)
        if not stat.S_ISREG(about.st_mode):
            raise ManifestError(f"no {asked}: not a file, but a {kind(about.st_mode)}")
        size, model = about.st_size, b""
        if size <= MAX_BUNDLE_BYTES:
            with open(opened, "rb", closefd=False) as file:
                model = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise ManifestError(f"the {asked} cannot be read: {error}. Is its disk there?") from None
    finally:
        os.close(opened)
    if max(size, len(model)) > MAX_BUNDLE_BYTES:
        raise ManifestError(
            f"{path}: {max(size, len(model))} bytes; a bundle has at most {MAX_BUNDLE_BYTES}. Use a smaller model"
        )
    return model


def from_bytes(model: bytes, source: str) -> Bundle:
    """Open a bundle that is already in memory. Raises ManifestError like `load`.

    In this order, each before the next costs anything: the file's structure, the manifest, the graph, one step.
    """
    if len(model) > MAX_BUNDLE_BYTES:
        raise ManifestError(f"{source}: {len(model)} bytes; a bundle has at most {MAX_BUNDLE_BYTES}")
    text = inspect(model, source).metadata.get(METADATA_KEY)
    if text is None:
        raise ManifestError(
            f"{source}: an ONNX model, but no bundle: its metadata hold no {METADATA_KEY!r}. "
            "Make a bundle of it with `statebelt adopt`; a model trained here is one once it went through `make export`"
        )
    manifest = Manifest.from_json(text, source)
    return Bundle(
        manifest=manifest,
        frontend=frontends.build(manifest),
        model=OnnxModel(open_runtime(model, source), manifest, source),
        head=heads.build(manifest),
        fingerprint=hashlib.sha256(model).digest()[:16],
        size_bytes=len(model),
        source=source,
    )
