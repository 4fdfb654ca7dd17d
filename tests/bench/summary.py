"""A run's raw figures to rows, ratios and latencies. Medians over turns; ratios are taken within a turn first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.figures import GRID, Series, over, streams_a_core

Run = Mapping[str, Any]
"""What `__main__` wrote: machine, alone, matches, vad, curves, skipped."""


@dataclass(frozen=True)
class Row:
    """A contender: CPU us a chunk at its maximum, in every turn, and what the server and the producer spent beside it.

    of_ceiling: as a multiple of the ceiling, flood by flood, where that was measured around each.
    """

    name: str
    us: Series
    server_us: Series | None = None
    producer_us: Series | None = None
    at: str = ""
    whole: str = ""
    of_ceiling: Series | None = None

    @property
    def streams(self) -> float:
        return streams_a_core(self.us.middle)


def best_batch(turns: Sequence[Mapping[str, float]]) -> str:
    """The batch size with the least median."""
    return min(turns[0], key=lambda batch: over(turns, batch).middle)


def _matched(name: str, turns: Sequence[Run], ours: bool) -> Row:
    floods = [flood for turn in turns for flood in turn["floods"]]
    compared = sum(turn["compared"] for turn in turns)
    furthest = max(turn["furthest"] for turn in turns)
    streams = over(turns, "max_streams").middle
    told = f"same bytes ({compared})" if ours else f"within {furthest:.0e} ({compared})"
    return Row(
        name, _flooded(turns), over(floods, "server_us"), over(floods, "producer_us"), f"{streams:.0f} live", told,
        _of_ceiling(turns),
    )  # fmt: skip


def _flooded(turns: Sequence[Run]) -> Series:
    """CPU us a chunk in a flood: of every turn the median."""
    return Series.of(over(turn["floods"], "us").middle for turn in turns)


def _of_ceiling(turns: Sequence[Run]) -> Series | None:
    floods = [flood for turn in turns for flood in turn["floods"] if "ceiling_us" in flood]
    return Series.of(flood["us"] / flood["ceiling_us"] for flood in floods) if floods else None


OURS = ("statebelt", "words")


def rows(run: Run) -> list[Row]:
    """Every contender that was measured, the ceiling first."""
    found = []
    for name, turns in run["alone"].items():
        batch = best_batch(turns)
        found.append(Row(name, over(turns, batch), at=f"batch {batch}"))
    found += [_matched(name, turns, name in OURS) for name, turns in run["matches"].items()]
    return found


def vad_rows(run: Run) -> list[Row]:
    """Voice activity: ours first."""
    vad = run.get("vad") or {}
    ours = [_matched("statebelt", vad["ours"], True)] if vad.get("ours") else []
    return ours + [Row(name, Series.of(values), at="batch 1") for name, values in vad.get("loops", {}).items()]


def _cost(run: Run, name: str) -> Series:
    """CPU us a chunk in every turn."""
    return _flooded(run["matches"].get(name, ()))


def ratios(run: Run) -> dict[str, float]:
    """What travels from machine to machine; the larger, the better for us."""
    vad = run.get("vad") or {}
    pairs = {
        "statebelt x loop": (_cost(run, "loop"), _cost(run, "statebelt")),
        "statebelt x faststream": (_cost(run, "faststream"), _cost(run, "statebelt")),
        "vad x silero loop": (Series.of(vad.get("loops", {}).get("silero loop", ())), _flooded(vad.get("ours", ()))),
    }
    of_ceiling = {name: _of_ceiling(run["matches"].get(name, ())) for name in OURS}
    return {
        **{f"{name}, of the ceiling": 1 / found.middle for name, found in of_ceiling.items() if found},
        **{name: others.against(mine) for name, (others, mine) in pairs.items() if others.values and mine.values},
    }


def latencies(run: Run) -> list[tuple[str, Sequence[Run]]]:
    """Everything that was live: what, and its turns."""
    labels = {"half": "at half of its maximum", "most": "at 90 %"}
    return [
        (f"{name} {label}", [turn[part] for turn in turns])
        for name, turns in run["matches"].items()
        for part, label in labels.items()
        if turns and part in turns[0] and "pushed_ms" in turns[0][part]
    ]


def percentile(turns: Sequence[Run], which: str, percent: float) -> Series:
    """Of latencies `pushed_ms` or `due_ms`."""
    return Series.of(turn[which][GRID.index(percent)] for turn in turns)


def speed_up(curve: Mapping[str, Sequence[Run]]) -> Series:
    """Two workers against one, by their CPU: twice the cores, at whatever a chunk costs then."""
    return Series.of(2 * one["us"] / two["us"] for one, two in zip(curve["1"], curve["2"], strict=True))


def others(run: Run) -> Series | None:
    """The part of the worker's core that went to strangers, over everything that was measured on Redis."""
    turns = [*(turn for each in run["matches"].values() for turn in each), *(run.get("vad") or {}).get("ours", ())]
    found = [part for turn in turns for part in [*turn["floods"], *turn.values()] if isinstance(part, dict)]
    curves = [curve for curve in run["curves"].values() if isinstance(curve, dict)]
    found += [turn for curve in curves for point in curve.values() for turn in point]
    return Series.of(part["others"] for part in found if "others" in part) if found else None
