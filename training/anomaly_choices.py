"""How much hangs on the anomaly task's constants: each one halved, doubled or left out, one at a time.

    python -m training.anomaly_choices           training/metrics/anomaly-choices.json, in five minutes on one core

The constants were looked for on the very series that are scored here. So beside each score stands what is left of it
when the threshold is chosen on the other groups, and for all variants together what is left when the variant itself,
too, is chosen on the other groups.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import typer
from tqdm import tqdm

from pipeline.bundle import Bundle, from_bytes
from pipeline.manifest import Provenance
from pipeline.offline import run
from training import anomaly_score, data, nab, runs, skab
from training.graph import with_manifest
from training.recipes.anomaly import RECIPE, Anomaly, AnomalyTask

_NOWHERE = Provenance(recipe="training/anomaly_choices.py", commit="none", data_sha256="none", created="never")


def bundle(recipe: Anomaly, name: str) -> Bundle:
    """A bundle of a recipe, in memory."""
    return from_bytes(with_manifest(*AnomalyTask(recipe).untrained(name, _NOWHERE)), name)


def of_one(recipe: Anomaly = RECIPE) -> dict[str, Anomaly]:
    """Variants of the univariate model. The threshold is none: NAB chooses it."""
    one = recipe.one
    half, double = ({"fast": tuple(max(1, round(a * by)) for a in one.fast)} for by in (0.5, 2.0))
    changes = {
        "as it is": {},
        "fast means halved": half,
        "fast means doubled": double,
        "slow means halved": {"slow": tuple(b // 2 for b in one.slow)},
        "slow means doubled": {"slow": tuple(b * 2 for b in one.slow)},
        "season halved": {"season": one.season // 2},
        "season doubled": {"season": one.season * 2},
        "no season": {"season": 0},
        "memory halved": {"memory": one.memory // 2},
        "memory doubled": {"memory": one.memory * 2},
        "start halved": {"start": one.start // 2},
        "start doubled": {"start": one.start * 2},
        "quiet halved": {"quiet": one.quiet // 2},
        "quiet doubled": {"quiet": one.quiet * 2},
        "all surprises told": {"quiet": 0},
    }
    return {name: replace(recipe, one=replace(one, **change)) for name, change in changes.items()}  # type: ignore[arg-type]


def of_eight(recipe: Anomaly = RECIPE) -> dict[str, Anomaly]:
    """Variants of the model of eight sensors and of its head."""
    eight, alarm = recipe.eight, recipe.eight_alarm
    made = {"as it is": recipe}
    for word, by in (("halved", 0.5), ("doubled", 2.0)):
        made[f"fast means {word}"] = replace(
            recipe, eight=replace(eight, fast=tuple(max(1, round(a * by)) for a in eight.fast))
        )
        made[f"start {word}"] = replace(recipe, eight=replace(eight, start=round(eight.start * by)))
        made[f"hold {word}"] = replace(recipe, eight_alarm=replace(alarm, hold=round(alarm.hold * by)))
        made[f"widen {word}"] = replace(recipe, eight=replace(eight, widen=round(eight.widen * by)))
    made["ranges stay"] = replace(recipe, eight=replace(eight, widen=0))
    for rise in (1.2, 1.4, 1.5, 1.6):  # a score ends at 1, so twice the level is out of reach
        made[f"rise {rise}"] = replace(recipe, eight_alarm=replace(alarm, rise=rise))
    return made


def chosen_elsewhere(series: list[nab.Series], variants: dict[str, dict[str, nab.Scores]]) -> float:
    """NAB's score where variant and threshold for each group are those that were best on the other groups."""
    gain = 0.0
    for group in sorted({one.group for one in series}):
        rest = [one for one in series if one.group != group]
        best = max(variants.values(), key=lambda scores: nab.score(rest, scores).gain)
        judged = [one for one in series if one.group == group]
        gain += nab.score(judged, best, nab.score(rest, best).threshold).gain
    return 100.0 * gain / (2.0 * sum(len(one.windows) for one in series))


def main() -> None:
    """Measure all variants."""
    began = time.monotonic()
    series, (files, _) = nab.read(data.corpus("nab")), skab.read(data.corpus("skab"))
    all_scores, one = {}, {}
    for name, recipe in tqdm(of_one().items(), desc="one", total=len(of_one())):
        made = bundle(recipe, "anomaly")
        scores = {s.name: run(made, s.values).scores[:, 0].astype(np.float64) for s in series}
        best = nab.score(series, scores)
        left = anomaly_score.left_out(series, scores)
        one[name] = {
            "nab_standard": round(best.score, 2),
            "threshold_of_other_groups": round(left, 2),
            "threshold": round(best.threshold, 4),
            "found": best.found,
            "false": best.false,
        }
        all_scores[name] = scores
    eight = {}
    truth = {file.name: file.anomaly for file in files}
    for name, recipe in tqdm(of_eight().items(), desc="eight", total=len(of_eight())):
        made = bundle(recipe, "anomaly8")
        found = {f.name: anomaly_score.marks(run(made, f.values).events, len(f.values), 1.0) for f in files}
        eight[name] = skab.f1(truth, found).rounded()
    report = {
        "task": "anomaly",
        **runs.about(RECIPE),
        "seconds": round(time.monotonic() - began, 1),
        "nab": one,
        "nab_variant_and_threshold_of_other_groups": round(chosen_elsewhere(series, all_scores), 2),
        "skab": eight,
    }
    runs.write_json(runs.METRICS / "anomaly-choices.json", report)
    for name, row in (*one.items(), *eight.items()):
        print(f"{name:24}", row)
    print(report["nab_variant_and_threshold_of_other_groups"])


if __name__ == "__main__":
    typer.run(main)
