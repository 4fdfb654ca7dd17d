"""What the demo tells: words as they come, and what it all amounted to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from pipeline.cli.demo.play import Heard
from pipeline.cli.playback import Recording
from pipeline.errors import AudioError


@dataclass(frozen=True)
class Summary:
    """One run. `expected` is None for a stream whose recording has no truth beside it."""

    expected: dict[str, list[str] | None]
    recognised: dict[str, list[str]]
    chunks: int
    chunk_ms: float
    seconds: float
    latency_p50_ms: float
    latency_p99_ms: float
    real_time_factor: float | None

    @property
    def ok(self) -> bool:
        """Whether every stream that has a truth was recognised."""
        return all(words is None or words == self.recognised[name] for name, words in self.expected.items())

    def as_record(self) -> dict[str, Any]:
        """As JSON shows it."""
        names = list(self.expected)
        return {
            "kind": "summary",
            "ok": self.ok,
            "streams": [
                {"stream": name, "expected": self.expected[name], "recognised": self.recognised[name]} for name in names
            ],
            "seconds": self.seconds,
            "chunks": self.chunks,
            "chunk_ms": self.chunk_ms,
            "latency_p50_ms": round(self.latency_p50_ms, 3),
            "latency_p99_ms": round(self.latency_p99_ms, 3),
            "real_time_factor": None if self.real_time_factor is None else round(self.real_time_factor, 5),
        }


def summarise(recordings: Sequence[Recording], heard: Heard, chunk_ms: float, sample_rate_hz: float) -> Summary:
    """What a run amounted to."""
    seconds = sum(len(recording.samples) for recording in recordings) / sample_rate_hz
    p50, p99 = np.percentile(np.array(heard.latency_s) * 1000, [50, 99]).tolist()
    return Summary(
        expected={recording.stream: truth(recording.path) for recording in recordings},
        recognised={stream: [event.label for event in events] for stream, events in heard.words.items()},
        chunks=heard.chunks,
        chunk_ms=chunk_ms,
        seconds=seconds,
        latency_p50_ms=p50,
        latency_p99_ms=p99,
        real_time_factor=None if heard.worker_cpu_s is None or not seconds else heard.worker_cpu_s / seconds,
    )


def truth(recording: Path) -> list[str] | None:
    """The words said in a recording, from the `.json` of the same name beside it: `{"words": [{"word": ..}, ..]}`.

    None without one. Raises AudioError for one that is none of ours.
    """
    path = recording.with_suffix(".json")
    if not path.is_file():
        return None
    try:
        return [str(word["word"]) for word in json.loads(path.read_text())["words"]]
    except (ValueError, KeyError, TypeError):
        raise AudioError(
            f'{path}: expected {{"words": [{{"word": "seven"}}, ...]}}; correct it or move it away'
        ) from None


def table(summary: Summary) -> Table:
    """The summary for people."""
    grid = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    several = len(summary.expected) > 1
    for name, expected in summary.expected.items():
        recognised = summary.recognised[name]
        if several:
            grid.add_row("", f"[cyan]{escape(name)}[/]")
        if expected is None:
            grid.add_row("recognised", escape(" ".join(recognised)) or "[dim]nothing[/]")
        else:
            said, got = _compared(expected, recognised)
            grid.add_row("expected", said)
            grid.add_row("recognised", got or "[dim]nothing[/]")
    streams = f", {len(summary.expected)} streams at once" if several else ""
    grid.add_row("chunks", f"{summary.chunks} of {summary.chunk_ms:g} ms{streams}")
    grid.add_row(
        "latency",
        f"[bold]{summary.latency_p50_ms:.1f} ms[/] p50, [bold]{summary.latency_p99_ms:.1f} ms[/] p99, "
        "from pushing a chunk to holding its result",
    )
    if summary.real_time_factor is not None:
        grid.add_row(
            "real-time factor",
            f"[bold]{summary.real_time_factor:.4f}[/]: the worker's CPU seconds for a second of sound "
            f"({summary.seconds:.1f} s in all)",
        )
    return grid


def _compared(expected: list[str], recognised: list[str]) -> tuple[str, str]:
    """Both word by word, differences in red."""
    said, got = [], []
    matcher = SequenceMatcher(a=expected, b=recognised, autojunk=False)
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        style = "green" if kind == "equal" else "bold red"
        said += [f"[{'default' if kind == 'equal' else style}]{escape(word)}[/]" for word in expected[i1:i2]]
        got += [f"[{style}]{escape(word)}[/]" for word in recognised[j1:j2]]
    return " ".join(said), " ".join(got)
