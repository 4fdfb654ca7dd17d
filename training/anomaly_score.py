"""What the anomaly bundles are worth: NAB's score and SKAB's F1, by forward on whole series and by streaming step.

No label is used before this: not by a model, a head or a threshold. One is used by NAB itself, whose optimiser chooses
the threshold of a score by its labels (`training/nab.py`); so the score with the bundle's own threshold stands beside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.bundle import Bundle, load
from pipeline.manifest import AnomalyHead
from pipeline.offline import Run, run
from pipeline.output import Event
from training import data, nab, skab

Marks = NDArray[np.bool_]


def both(bundle: Bundle, values: NDArray[np.float32], chunk_samples: int) -> tuple[Run, bool]:
    """The whole series in one step, and whether chunks of it yield the same scores and events, byte for byte."""
    whole = run(bundle, values)
    cut = run(bundle, values, chunk_samples=chunk_samples)
    return whole, cut.scores.tobytes() == whole.scores.tobytes() and cut.events == whole.events


def alarms(events: list[Event], rows: int, rate_hz: float) -> NDArray[np.float64]:
    """`[T]`: the score of what is told with each frame, 0 where nothing is: known when the frame's value is."""
    told = np.zeros(rows)
    for event in events:
        if event.label.endswith("_start"):
            told[round(event.start_s * rate_hz)] = event.score
    return told


def marks(events: list[Event], rows: int, rate_hz: float) -> Marks:
    """`[T]`: which frames lie in an anomaly."""
    found = np.zeros(rows, bool)
    for event in events:
        if not event.label.endswith("_start"):
            found[round(event.start_s * rate_hz) : round(event.end_s * rate_hz)] = True
    return found


def left_out(series: list[nab.Series], scores: dict[str, nab.Scores]) -> float:
    """NAB's score where each group is judged with the threshold that the other groups would have chosen."""
    gain = 0.0
    for group in sorted({one.group for one in series}):
        rest = [one for one in series if one.group != group]
        judged = [one for one in series if one.group == group]
        gain += nab.score(judged, scores, nab.score(rest, scores).threshold).gain
    return 100.0 * gain / (2.0 * sum(len(one.windows) for one in series))


def of_nab(bundle: Bundle, chunk_samples: int = 12) -> dict[str, Any]:
    """A univariate bundle on all series that are there. Raises ConfigError: none is."""
    series = nab.read(data.corpus("nab"))
    rate_hz, head = bundle.manifest.input.sample_rate_hz, bundle.manifest.head
    assert isinstance(head, AnomalyHead)
    scores, told, same = {}, {}, True
    for one in tqdm(series, desc="NAB", unit="series", leave=False):
        found, equal = both(bundle, one.values, chunk_samples)
        scores[one.name] = found.scores[:, 0].astype(np.float64)
        told[one.name] = alarms(found.events, len(one.values), rate_hz)
        same &= equal
    best = nab.score(series, scores)

    def judged(outcome: nab.Outcome) -> dict[str, float]:
        names = ("score", "found", "windows", "false")
        return {name: round(getattr(outcome, name), 2) for name in names}

    groups = {}
    for group in sorted({one.group for one in series}):
        part = [one for one in series if one.group == group]
        groups[group] = judged(nab.score(part, scores, best.threshold))
    figures = {
        "nab_standard": best.score,
        "nab_threshold_of_other_groups": left_out(series, scores),
        "nab_own_threshold": nab.score(series, scores, head.threshold).score,
        "nab_events": nab.score(series, told, head.threshold).score,
    }
    return {
        "corpus": "NAB, the five groups in shared/data/nab, standard profile",
        "scores": {name: round(value, 2) for name, value in figures.items()},
        "threshold": best.threshold,
        "all": judged(best),
        "groups": groups,
        "rows": sum(len(one.values) for one in series),
        "same": same,
    }


def of_skab(bundle: Bundle, chunk_samples: int = 7) -> dict[str, Any]:
    """An eight-sensor bundle on all files of experiments. Raises ConfigError: there are none."""
    files, free = skab.read(data.corpus("skab"))
    rate_hz = bundle.manifest.input.sample_rate_hz
    found, by_protocol, truth, same = {}, {}, {}, True
    for one in tqdm(files, desc="SKAB", unit="file", leave=False):
        made, equal = both(bundle, one.values, chunk_samples)
        same &= equal
        truth[one.name] = one.anomaly
        found[one.name] = marks(made.events, len(one.values), rate_hz)
        scores = made.scores[:, 0].astype(np.float64)
        by_protocol[one.name] = scores > skab.limit(scores[: skab.NORMAL_ROWS])
    quiet, _ = both(bundle, free, 100)
    whole, protocol = skab.f1(truth, found), skab.f1(truth, by_protocol)
    figures = {"skab_f1": whole.f1, "skab_f1_protocol_threshold": protocol.f1}
    groups = {}
    for group in sorted({one.group for one in files}):
        names = [one.name for one in files if one.group == group]
        part = skab.f1({name: truth[name] for name in names}, {name: found[name] for name in names})
        groups[group] = {**part.rounded(), "files": len(names)}
    return {
        "corpus": "SKAB, 34 files of experiments, pointwise",
        "scores": {name: round(value, 4) for name, value in figures.items()},
        "all": whole.rounded(),
        "groups": groups,
        "marked_where_nothing_is_wrong": round(float(marks(quiet.events, len(free), rate_hz).mean()), 4),
        "rows": sum(len(one.values) for one in files),
        "same": same,
    }


SHOWN = (
    "artificialWithAnomaly/art_daily_nojump.csv",
    "realAdExchange/exchange-4_cpc_results.csv",
    "realKnownCause/nyc_taxi.csv",
    "realKnownCause/machine_temperature_system_failure.csv",
    "realTraffic/speed_t4013.csv",
)


def pictures(folder: Path) -> None:
    """nab.png and skab.png: values, labelled windows, scores and alarms of some series."""
    bundle, eight = load("anomaly"), load("anomaly8")
    series = [one for one in nab.read(data.corpus("nab")) if one.name in SHOWN]
    figure, axes = plt.subplots(len(series), 1, figsize=(11, 2.4 * len(series)))
    for one, axis in zip(series, axes, strict=True):
        told = alarms(run(bundle, one.values).events, len(one.values), bundle.manifest.input.sample_rate_hz)
        _series(axis, one.name, one.values, told > 0)
        for first, last in one.windows:
            axis.axvspan(first, last, color="C1", alpha=0.25)
    figure.tight_layout()
    figure.savefig(folder / "nab.png", dpi=110)
    plt.close(figure)

    files = [one for one in skab.read(data.corpus("skab"))[0] if one.name in ("valve1/0.csv", "other/9.csv")]
    figure, axes = plt.subplots(len(files), 1, figsize=(11, 2.6 * len(files)))
    for file, axis in zip(files, axes, strict=True):
        made = run(eight, file.values)
        _series(axis, f"SKAB {file.name}: score", made.scores[:, 0], marks(made.events, len(file.values), 1.0))
        axis.fill_between(np.arange(len(file.values)), 0, 1, where=file.anomaly, color="C1", alpha=0.25)
    figure.tight_layout()
    figure.savefig(folder / "skab.png", dpi=110)
    plt.close(figure)


def _series(axis: Any, title: str, values: NDArray[Any], told: Marks) -> None:
    axis.plot(values, linewidth=0.6)
    at = np.flatnonzero(told)
    axis.plot(at, values[at], "r.", markersize=4)
    axis.set(title=f"{title}; labelled (shaded), told (red)", xlim=(0, len(values)))
    axis.title.set_fontsize(8)
