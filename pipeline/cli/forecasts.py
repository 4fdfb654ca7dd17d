"""What a forecast says, for people and as JSON: the last one of a recording."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.manifest import ForecastHead

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.manifest import Manifest
    from pipeline.offline import Run


class Told(NamedTuple):
    """from_s: when it was made. step_s: from one value to the next. series: the values of each."""

    from_s: float
    step_s: float
    series: dict[str, list[float]]


def last_forecast(manifest: Manifest, done: Run) -> Told | None:
    """A run's last forecast; None: it made none."""
    head = manifest.head
    if not isinstance(head, ForecastHead) or not done.events:
        return None
    row = done.scores[len(done.events) * head.every_frames - 1].reshape(head.horizon, len(head.series))
    shortest = [[float(str(value)) for value in step] for step in row]  # the digits that float32 has, no more
    values = {name: [step[n] for step in shortest] for n, name in enumerate(head.series)}
    return Told(done.events[-1].end_s, 1 / manifest.frame_rate_hz, values)


def table(told: Told) -> Table:
    """A row a step."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, title=f"forecast, made at {told.from_s:g} s", title_justify="left")
    shown.add_column("after", justify="right")
    for name in told.series:
        shown.add_column(escape(name), justify="right")
    for n, values in enumerate(zip(*told.series.values(), strict=True), 1):
        shown.add_row(f"{n * told.step_s:g} s", *(f"{value:.4g}" for value in values))
    return shown
