"""What tasks over sensor streams share: the same recordings as one signal and as a stream, hashes, pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from pipeline.batcher import Batcher
from pipeline.bundle import Bundle
from pipeline.component import Array
from pipeline.offline import run
from pipeline.output import Event

Said = tuple[list[Event], Array]
"""What a recording yielded: its events, and every frame's scores `[T, C]`."""


def by_forward(bundle: Bundle, signals: Sequence[Array]) -> list[Said]:
    """Every signal `[N, channels]` at once."""
    done = [run(bundle, x) for x in signals]
    return [(one.events, one.scores) for one in done]


def by_step(bundle: Bundle, signals: Sequence[Array], seed: int = 3, most: int = 500) -> list[Said]:
    """All signals as streams in one batch, each in chunks of its own random sizes, up to `most` samples."""
    rng = np.random.default_rng(seed)
    batcher = Batcher(bundle, keep_scores=True)
    rows = np.array([batcher.layout.blank] * len(signals))
    events: list[list[Event]] = [[] for _ in signals]
    scores: list[list[Array]] = [[np.empty((0, bundle.manifest.model.classes), np.float32)] for _ in signals]
    at, sizes = np.zeros(len(signals), int), np.array([len(x) for x in signals])
    live = np.arange(len(signals))
    while live.size:
        until = np.minimum(at[live] + rng.integers(1, most + 1, live.size), sizes[live])
        some = rows[live]
        chunks = [signals[i][at[i] : stop] for i, stop in zip(live.tolist(), until.tolist(), strict=True)]
        for i, output in zip(live.tolist(), batcher.run(some, chunks, until == sizes[live]), strict=True):
            events[i] += output.events
            scores[i] += output.scores
        rows[live] = some
        at[live] = until
        live = live[until < sizes[live]]
    return [(found, np.concatenate(parts)) for found, parts in zip(events, scores, strict=True)]


def same(one: Sequence[Said], other: Sequence[Said]) -> bool:
    """Whether they agree in every event and in every byte of every score."""
    pairs = zip(one, other, strict=True)
    return all(a[0] == b[0] and a[1].tobytes() == b[1].tobytes() for a, b in pairs)


def sha256(files: Iterable[Path], root: Path) -> str:
    """One hash over names and bytes: the provenance's `data_sha256`."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(str(file.relative_to(root)).encode())
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def plot_confusion(counts: NDArray[np.int64], names: Sequence[str], path: Path, title: str) -> None:
    """`[C, C]` counts: what it was in rows, what was said in columns; colours are shares of a row."""
    figure, axis = plt.subplots(figsize=(1.5 + 0.6 * len(names), 1.2 + 0.55 * len(names)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        if counts[row, column]:
            told = f"{100 * share:.1f}" if share < 0.995 else f"{100 * share:.0f}"
            axis.text(column, row, told, ha="center", va="center", color="white" if share > 0.5 else "black", size=7)
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="said", ylabel="was", title=f"{title}, percent of a row")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
