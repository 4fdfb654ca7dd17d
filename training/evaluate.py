"""How good is it? Leave-one-speaker-out, through the very components that serve.

    python -m training.evaluate          all four folds (those not trained yet are trained first, minutes each)

Every fold's weights become a bundle of their own, never shipped. Then

1. clips: a left-out speaker's 500 takes, one stream each. A take is right if the event with the highest score (what a
   user gets) bears its label; no event is wrong. Counted twice: by `forward` on the whole signal, and by streaming
   through the batcher, all takes in one batch, cut at random. Exit 1 unless the two counts are the same.
2. detector: the same speaker's takes in continuous noise at 10 dB, against false alarms on Arabic speech played on
   end (speakers no training heard), over thresholds.

Writes runs/evaluation.json, runs/detector.png and a confusion matrix a fold.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.batcher import Batcher
from pipeline.batcher import Event as Heard
from pipeline.bundle import Bundle
from pipeline.component import Array
from pipeline.manifest import Provenance
from training import data, export, score
from training.data import Clip
from training.detector import Scene, alarms, detected, scenes
from training.plots import plot_confusion, plot_detector
from training.recipes.digits import DIGITS, LABELS, RECIPE

THRESHOLDS = (*(float(t) for t in np.round(np.arange(0.2, 0.96, 0.05), 2)), 0.97, 0.98, 0.99)


def as_int16(x: Array) -> NDArray[np.int16]:
    """Samples in -1..1 back to what the recordings hold."""
    return np.asarray(np.clip(np.rint(x * 32768), -32768, 32767).astype(np.int16))


def whole(bundle: Bundle, clips: tuple[Clip, ...]) -> tuple[list[int], list[int]]:
    """Labels of every clip by `forward`: (from events, from pooled scores); -1 where there is no event."""
    found, summed = [], []
    for clip in clips:
        events, scores, _ = bundle.forward(as_int16(clip.samples))
        found.append(int(score.best(events, 1)[0]))
        summed.append(int(score.pooled(scores[None])[0]))
    return found, summed


def streamed(bundle: Bundle, clips: tuple[Clip, ...], seed: int = 3) -> list[int]:
    """Labels of every clip by streaming step: all clips in one batch, each in chunks of its own random sizes."""
    rng = np.random.default_rng(seed)
    batcher = Batcher(bundle)
    rows = np.array([batcher.layout.blank] * len(clips))
    heard: list[list[Heard]] = [[] for _ in clips]
    at = np.zeros(len(clips), int)
    sizes = np.array([clip.samples.size for clip in clips])
    live = np.arange(len(clips))
    while live.size:
        until = np.minimum(at[live] + rng.integers(1, 1600, live.size), sizes[live])
        chunks = [as_int16(clips[i].samples[at[i] : e])[:, None] for i, e in zip(live, until, strict=True)]
        some = rows[live]
        for i, output in zip(live, batcher.run(some, chunks, until == sizes[live]), strict=True):
            heard[i] += output.events
        rows[live] = some
        at[live] = until
        live = live[until < sizes[live]]
    return [LABELS.index(max(events, key=lambda e: e.score).label) if events else -1 for events in heard]


def scores_of(bundle: Bundle, scene: Scene) -> Array:
    """`[T, C]` of a long recording, through the bundle."""
    return bundle.forward(as_int16(scene.samples)).scores


def curve(bundle: Bundle, speaker: str) -> list[dict[str, float]]:
    """The detector at every threshold: share of words detected, false alarms an hour, and in how good a place."""
    spoken = [(scene, scores_of(bundle, scene)) for scene in scenes(speaker)]
    foreign = [(scene, scores_of(bundle, scene)) for scene in alarms()]
    hours = sum(scene.samples.size for scene, _ in foreign) / 8000 / 3600
    points = []
    for threshold in THRESHOLDS:
        release = min(RECIPE.head.release, threshold)
        spec = score.head(RECIPE.head, threshold=threshold, release=release)
        hits = [detected(score.decide(x[None], spec), scene, RECIPE.hop_samples) for scene, x in spoken]
        false = sum(len(score.decide(x[None], spec).label) for _, x in foreign)
        words = sum(len(scene.words) for scene, _ in spoken)
        points.append(
            {
                "threshold": threshold,
                "detected": sum(h.right for h in hits) / words,
                "wrong_or_extra": sum(h.extra for h in hits) / words,
                "overlap": float(np.mean(np.concatenate([h.overlap for h in hits]))) if hits else 0.0,
                "false_alarms_an_hour": false / hours,
            }
        )
    return points


def fold(speaker: str, weights: Path, output: Path) -> dict[str, Any]:
    """One left-out speaker: counts whole and streamed, pooled accuracy, confusion, the detector's curve."""
    model, recipe = export.read_weights(weights)
    told = export.manifest(recipe, RECIPE.head, Provenance(recipe="a fold", commit="", data_sha256="", created=""))
    bundle = export.write(model, told, output)
    clips = data.digits((speaker,))
    wanted = [clip.label for clip in clips]
    by_forward, by_pooling = whole(bundle, clips)
    by_step = streamed(bundle, clips)
    confusion = np.zeros((len(DIGITS), len(DIGITS) + 1), int)
    np.add.at(confusion, (wanted, by_step), 1)
    plot_confusion(confusion, output.with_name("confusion.png"), f"{speaker}, left out, streamed")

    def right(labels: list[int]) -> int:
        return sum(a == b for a, b in zip(labels, wanted, strict=True))

    return {
        "clips": len(clips),
        "whole_right": right(by_forward),
        "streamed_right": right(by_step),
        "same": by_forward == by_step,
        "pooled_right": right(by_pooling),
        "no_event": by_step.count(-1),
        "confusion": confusion.tolist(),
        "detector": curve(bundle, speaker),
    }


def summary(folds: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The mean figures of all folds, for the manifest's provenance."""
    count = len(folds)

    def at(result: dict[str, Any], name: str) -> float:
        point = min(result["detector"], key=lambda p: abs(p["threshold"] - RECIPE.head.threshold))
        return float(point[name])

    return {
        "speakers_left_out": float(count),
        "accuracy_streaming": sum(r["streamed_right"] / r["clips"] for r in folds.values()) / count,
        "accuracy_pooled": sum(r["pooled_right"] / r["clips"] for r in folds.values()) / count,
        "detected_in_10_db_noise": sum(at(r, "detected") for r in folds.values()) / count,
        "false_alarms_an_hour": sum(at(r, "false_alarms_an_hour") for r in folds.values()) / count,
        "worst_false_alarms_an_hour": max(at(r, "false_alarms_an_hour") for r in folds.values()),
    }


def main(
    speaker: Annotated[list[str] | None, typer.Option(help="Only these folds; default all four.")] = None,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = data.RUNS / "evaluation.json",
    weights: Annotated[str, typer.Option(help="The run of a fold; {} is the speaker.")] = "digits-without-{}",
) -> None:
    """Evaluate the recipe on speakers it did not hear."""
    torch.set_num_threads(1)
    folds = {}
    for name in tqdm(speaker or data.SPEAKERS, desc="folds", unit="speaker"):
        run = data.RUNS / weights.format(name)
        if not (run / "metrics.json").is_file():
            from training import train

            tqdm.write(f"{name}: not trained yet, or not to the end; training into {run}")
            train.main(leave_out=name, name=run.name)
        folds[name] = result = fold(name, run / "weights.pt", run / "fold.onnx")
        tqdm.write(
            f"{name}: whole {result['whole_right']}, streamed {result['streamed_right']} of {result['clips']} right; "
            f"pooled {result['pooled_right']}; no event {result['no_event']}"
        )
    scores = summary(folds)
    report = {"recipe": dataclasses.asdict(RECIPE), "scores": scores, "folds": folds}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1))
    curves = {name: result["detector"] for name, result in folds.items()}
    plot_detector(curves, output.with_name("detector.png"), RECIPE.head.threshold)
    for name, points in curves.items():
        for p in points:
            print(name, " ".join(f"{k} {v:.3g}" for k, v in p.items()))
    print(json.dumps(scores, indent=1))
    if not all(result["same"] for result in folds.values()):
        sys.exit("streamed and whole do not agree: that must not be")


if __name__ == "__main__":
    typer.run(main)
