"""The chapters of the report that are measured while it is built, on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from pipeline.bundle import load
from pipeline.errors import StatebeltError
from training import anomaly_score, compare, forecast_data, inspect, report_live, report_plots, report_sections
from training.observed_plots import draw
from training.quantise import compared, variant
from training.recipes import forecast
from training.report_bars import Metrics
from training.report_page import Section, absent, heading, inline, made_by, paragraph, picture, table, verdict
from training.report_sections import number

COMMAND = "python -m training.report"
NONE = "-"
MOST_VARIED = 16_000
"""Samples over which an int8 bundle's dependence on batch and cut is looked for, with four streams."""


def streaming() -> Section:
    """Whole against streaming, now."""
    section = Section("streaming", "Whole against streaming")
    about = (
        "Each shipped bundle, over the demo's twelve digits, or over noise, steps and constants: the whole signal at "
        "once, and the same in chunks of several lengths, through the batcher that a worker runs. Scores are compared "
        "bit by bit, while this page is built."
    )
    rows = [
        (one.bundle, f"{one.numbers:,}", f"{one.scores_apart:,}", one.events, one.events_apart,
         ", ".join(map(str, one.chunks)),
         verdict(one.scores_apart + one.events_apart == 0) if one.exact else f"not promised; largest {one.largest:.1e}")
        for one in report_live.equalities()
    ]  # fmt: skip
    heads = ("bundle", "scores compared", "different", "events", "different", "chunks of samples", "zero differences")
    section.parts += [paragraph(about), table(heads, rows, numbers=(1, 2, 3, 4)), made_by(COMMAND, "live")]
    return section


def architectures(metrics: Metrics, seconds: float) -> Section:
    """Side by side: accuracy under one budget, parameters, state, latency, streams a core."""
    section = Section("architectures", "Architectures side by side")
    about = (
        "Nine architectures of about the same number of weights, each trained on the same batches of the commands "
        "task in the same order, under one small budget: who learns what from so little, not what each would reach. "
        "Live streams a core are measured while this page is built: 64 streams a step, chunks of 100 ms, features and "
        "head included."
    )
    section.parts.append(paragraph(about))
    one = metrics.get("commands-cells", {})
    trained = one.get("variants", {})
    rows, streams = [], {}
    for name, settings in compare.variants("cells").items():
        have = trained.get(name, {})
        try:
            fast = report_live.speed_untrained("commands", have.get("settings", settings), seconds)
        except StatebeltError as error:
            fast = {}
            tqdm.write(f"{name}: {error}")
        last = have.get("history", [{}])[-1]
        streams[name] = float(fast.get("live_streams_a_core", 0))
        rows.append(
            (name, _percent(last.get("events")), _percent(last.get("pooled")), number(have.get("parameters")),
             number(fast.get("model_state_bytes")), _short(fast.get("latency_ms")), _short(fast.get("block_ms")),
             number(fast.get("live_streams_a_core")), number(have.get("cpu_seconds")))
        )  # fmt: skip
    heads = (
        "architecture", "words right", "by pooled scores", "parameters", "bytes of state", "latency, ms", "block, ms",
        "live streams a core", "CPU s of training",
    )  # fmt: skip
    section.parts.append(table(heads, rows, numbers=range(1, 9)))
    if any(streams.values()):
        figure = report_plots.bars(streams, "live streams a core")
        section.parts.append(picture(figure, "Measured live; weights untrained, which cost the same."))
    if not trained:
        section.parts.append(absent("python -m training.compare commands"))
        return section
    budget = ", ".join(f"{k} {v}" for k, v in one.get("budget", {}).items())
    figure = report_plots.curves(report_sections.histories(one))
    section.parts += [picture(figure, f"Learning curves; budget: {budget}."), report_sections.source(one)]
    return section


def bundles(seconds: float) -> Section:
    """The shipped files."""
    section = Section("bundles", "Shipped bundles")
    rows = [
        (one["bundle"], f"{one['file_bytes'] / 1024:,.0f}", f"{one['parameters']:,}",
         number(one["model_state_bytes"]), number(one["row_bytes"]), _short(one["latency_ms"]),
         _short(one["us_a_chunk"]), number(one["live_streams_a_core"]))
        for one in report_live.speeds(seconds)
    ]  # fmt: skip
    total = sum(path.stat().st_size for path in report_live.shipped())
    heads = (
        "bundle", "KiB", "numbers in it", "bytes of state", "bytes a row", "latency, ms", "us a chunk",
        "live streams a core",
    )  # fmt: skip
    told = f"{total / 2**20:.2f} MiB in all (at most 8). A chunk is 100 ms, or a block where that is longer."
    section.parts += [table(heads, rows, numbers=range(1, 8)), paragraph(told)]
    section.parts.append(made_by("python -m training.speed pipeline/bundles/*.onnx", "live"))
    return section


def int8(metrics: Metrics, seconds: float) -> Section:
    """The shipped bundles that have something to quantise, in int8 beside themselves."""
    section = Section("int8", "int8 beside float32")
    about = (
        "Dynamic quantisation: weights in 8 bits, what they are multiplied with by its own range within the call. So "
        "it is not exact: where the last column says so, a score depends a little on who shares the batch and on the "
        "cut. "
        "Speed and differences are measured while this page is built; accuracy takes the corpus."
    )
    rows = []
    for path in report_live.shipped():
        kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
        if not kinds & {"LSTM", "MatMul"}:
            continue
        try:
            before = load(path)
            signal = report_live.heard(before.manifest)
            _, after = variant(path.read_bytes(), name=path.name, recording=signal[:MOST_VARIED], streams=4)
            found = compared(before, after, signal, seconds=seconds)
        except StatebeltError as error:
            rows.append((path.stem, *[NONE] * 5, str(error)[:120]))
            continue
        rows.append(
            (path.stem, *(f"{size / 1024:,.0f}" for size in found["file_bytes"]),
             *(number(one) for one in found["live_streams_a_core"]),
             f"{found['largest_difference']:.3g} of {found['span']:.3g}",
             f"depends, up to {found['tolerance']:.1e}" if found["depends_on_batch"] else "exact")
        )  # fmt: skip
    heads = ("bundle", "KiB", "int8", "streams a core", "int8", "largest difference of a score", "batch and cut")
    section.parts += [paragraph(about), table(heads, rows, numbers=range(1, 6))]
    command = "python -m training.quantise pipeline/bundles/NAME.onnx -o runs/NAME-int8.onnx"
    section.parts += [made_by(command, "live"), heading("What it costs in accuracy")]
    pairs = [(name.removesuffix("-int8"), one) for name, one in metrics.items() if name.endswith("-int8")]
    for name, one in pairs:
        before, after = (each.get("scores", {}) for each in (metrics.get(name, {}), one))
        rows = [(key.replace("_", " "), number(before[key]), number(after[key])) for key in after if key in before]
        section.parts += [table((name, "float32", "int8"), rows, numbers=(1, 2)), report_sections.source(one)]
    if not pairs:
        command = "python -m training.evaluate commands --bundle runs/commands-int8.onnx --run commands-int8 --keep"
        section.parts.append(absent(command))
    return section


def memory_seen() -> Section:
    """The demo's recording through the digits bundle, observed."""
    section = Section("seen", "The memory, seen")
    seen, apart = inspect.view(report_live.DEMO, "digits")
    caption = (
        "Twelve digits by twelve voices; eight units of the second layer. Gates recomputed from the weights in the "
        f"file: their scores are at most {apart:.1e} from onnxruntime's. Grey lines: borders of the chunks."
    )
    command = "make inspect FILE=pipeline/recordings/digits.flac"
    section.parts += [picture(draw(seen), caption, dpi=80), made_by(command, "live")]
    return section


def sensors() -> Section:
    """What the sensors' shipped models say of series that they did not learn from; where the corpora are."""
    section = Section("sensors", "Sensors, foretold and watched")
    foretold = "ETTh1, ten days of the test months: what came (black), and what was foretold at midnight."
    watched = "NAB and SKAB: what is labelled (shaded), what the head told (red)."
    drawn = {"forecast": (_forecasts, foretold), "anomaly": (anomaly_score.pictures, watched)}
    for name, (draws, caption) in drawn.items():
        section.parts.append(heading(name))
        try:
            with tempfile.TemporaryDirectory() as folder:
                draws(Path(folder))
                section.parts += [inline(path.read_bytes(), caption) for path in sorted(Path(folder).glob("*.png"))]
            section.parts.append(made_by(COMMAND, "live, from the shipped bundle"))
        except StatebeltError as error:
            section.parts.append(paragraph(f"not drawn: {error}", "absent"))
    return section


def _forecasts(folder: Path) -> None:
    names, values = forecast_data.series()
    end = forecast_data.JUDGED[0] + 52 * forecast.DAY
    told = load("forecast").forward(values[:end]).scores
    forecast.plot_forecasts(values, told[:, : forecast.RECIPE.horizon * len(names)], folder / "forecast.png")


def _percent(value: Any) -> str:
    return NONE if value is None else f"{100 * float(value):.1f} %"


def _short(value: Any) -> str:
    return NONE if value is None else f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}"
