"""One page with the evidence: `runs/report.html`, which needs no network and no other file.

    python -m training.report           (or `make report`)       about a minute on one core

It reads the committed figures (`training/metrics/*.json`, each with its commit, seed, time and command) and measures
what is quick while it is built: whole against streaming of every shipped bundle, live streams a core, int8 beside
float32, a picture of the demo's memory. What has not been measured is said so, with the command that would.
"""

from __future__ import annotations

import datetime
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from training import data, report_measured, report_memory, report_sections, runs
from training.report_bars import Metrics
from training.report_page import Html, page

KNOWN = ("digits", "commands", "activity", "forecast", "anomaly", "moving_average", "adding", "copying")
COMPARED = ("commands-cells", "commands-dropout")
DROPOUT = (
    "The same batches under the same budget; dropout at different places, one mask a frame or one a segment (locked)."
)


def read(folder: Path) -> Metrics:
    """Every readable file of figures by its name; one that is no JSON object is passed over, and told."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            values = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            tqdm.write(f"{path}: not read ({error})")
            continue
        if isinstance(values, dict):
            found[path.stem] = values
    return found


def shown(name: str, one: dict[str, Any]) -> bool:
    """Is a file of figures in another chapter already?"""
    return name in KNOWN or name in COMPARED or (name.split("-")[0] in KNOWN and "scores" in one)


def build(metrics: Metrics, seconds: float = 0.5) -> str:
    """The page.

    Args:
        seconds: CPU time for each measurement of speed.
    """
    dropout = ("commands-dropout", "Dropout, where it belongs", "dropout")
    sections = [
        report_sections.tasks(metrics),
        report_measured.streaming(),
        report_measured.memory_seen(),
        report_memory.long_memory(metrics),
        report_measured.architectures(metrics, seconds),
        report_measured.bundles(seconds),
        report_measured.int8(metrics, seconds),
        report_measured.sensors(),
        report_sections.variants(metrics, *dropout, "python -m training.compare commands --what dropout", DROPOUT),
        report_sections.learning(metrics),
        report_sections.confusions(metrics),
        report_sections.details(metrics),
        report_sections.others(metrics, shown),
    ]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    told = f"Made {now} at commit {runs.commit()} by <code>make report</code> on {platform.machine()}, "
    told += f"torch {version('torch')}, onnxruntime {version('onnxruntime')}."
    subtitle = Html(f"Every architecture that remembers, on speech and sensors, with the evidence. {told}")
    foot = "Figures that take long are committed in training/metrics, each with its commit, seed, time and command."
    return page("statebelt: what remembers, and how well", subtitle, [s for s in sections if s.parts], foot)


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = data.RUNS / "report.html",
    metrics: Annotated[Path, typer.Option(help="The folder of committed figures.")] = runs.METRICS,
    seconds: Annotated[float, typer.Option(min=0.05, help="CPU time for each measurement of speed.")] = 0.5,
) -> None:
    """Build the report."""
    torch.set_num_threads(1)
    began = time.monotonic()
    text = build(read(metrics), seconds)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    print(f"{output}: {len(text) / 2**20:.1f} MiB, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    typer.run(main)
