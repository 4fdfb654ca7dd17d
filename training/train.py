"""Train the digits model: truncated back-propagation through time over composed, continuous streams.

    python -m training.train                          all four speakers: the shipped weights
    python -m training.train --leave-out george       one fold; george is never listened to
    python -m training.train --stop-on nicolas        early stopping on a real speaker who is left out for it

A run lives in `runs/<name>/`: weights.pt (all that resuming needs), metrics.json, curves.png, confusion.png.
Started again it goes on where it was and ends at the same weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import ConfigError
from training import data, score, synthetic
from training.compose import BG, Batch, Composer, Pools
from training.models.lstm import KeywordLSTM
from training.plots import plot_confusion, plot_curves
from training.recipes.digits import RECIPE, Recipe


def pools(learnt: tuple[str, ...]) -> Pools:
    """What is heard when these speakers are learnt from: they, synthetic voices, Arabic `train` speakers, noise."""
    voices, _ = synthetic.clips()
    return Pools(
        digits=data.digits(learnt),
        synthetic=tuple(clip for clip in voices if clip.label < 10),
        others=data.others("train"),
        decoys=tuple(clip for clip in voices if clip.label >= 10) + synthetic.foreign(),
        noises=data.noises(),
    )


def loss(logits: Tensor, allowed: Tensor, smoothing: float, word_weight: float = 1.0) -> Tensor:
    """Mean over frames of -log P(an allowed class), `[B, T, C]` each; smoothing shares a little among all classes.

    Frames in which background is not allowed count `word_weight` times.
    """
    log_p = logits.log_softmax(dim=-1)
    right = log_p.masked_fill(~allowed, -torch.inf).logsumexp(dim=-1)
    weight = torch.where(allowed[:, :, BG], 1.0, word_weight)
    return -(weight * ((1 - smoothing) * right + smoothing * log_p.mean(dim=-1))).sum() / weight.sum()


class Learner:
    """Model, optimiser and average weights, and how far they have come."""

    def __init__(self, recipe: Recipe, composer: Composer) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.composer = recipe, composer
        self.model = KeywordLSTM(recipe)
        self.average = KeywordLSTM(recipe)
        self._normalise()
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.steps = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"loss": math.inf, "passes": 0, "weights": self.average.state_dict()}

    def _normalise(self) -> None:
        """Fix mean and scale by the frames of one batch that training never learns from."""
        batch, _ = self.composer.batch(2**31, None)
        x = (self.model.log_mel(torch.from_numpy(batch.power)) @ self.model.dct).flatten(0, 1)
        self.model.mean.copy_(x.mean(dim=0))
        self.model.scale.copy_(1.0 / x.std(dim=0).clamp_min(0.1))

    def one_pass(self, number: int, bar: bool = True) -> float:
        """`batches` batches of streams, each in segments; the mean loss of a frame."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed * 1_000_003 + number)
        self.model.train()
        h, c = self.model.initial_state(recipe.streams)
        context, total = None, 0.0
        counts = range(number * recipe.batches, (number + 1) * recipe.batches)
        title = f"pass {number + 1}/{recipe.passes}"
        for index in tqdm(counts, desc=title, unit="batch", leave=False, disable=not bar):
            batch, context = self.composer.batch(index, context)
            kept = torch.from_numpy(~batch.fresh)[None, :, None]
            mean, h, c = self._descend(batch, h * kept, c * kept)
            total += mean / recipe.batches
        return total

    def _descend(self, batch: Batch, h: Tensor, c: Tensor) -> tuple[float, Tensor, Tensor]:
        """One optimiser step a segment; h and c go on, detached, so gradients end where a segment begins."""
        recipe = self.recipe
        x = self.model.log_mel(torch.from_numpy(batch.power), torch.from_numpy(batch.bank))
        x = self._masked(x)
        allowed = torch.from_numpy(batch.allowed)
        segments = range(0, x.shape[1], recipe.segment_frames)
        total = 0.0
        for start in segments:
            cut = slice(start, start + recipe.segment_frames)
            for group in self.optimiser.param_groups:
                group["lr"] = self._learning_rate()
            logits, h, c = self.model.logits(x[:, cut], h.detach(), c.detach())
            value = loss(logits, allowed[:, cut], recipe.label_smoothing, recipe.word_weight)
            self.optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
            self.optimiser.step()
            self.steps += 1
            self._follow()
            total += float(value.detach()) / len(segments)
        return total, h.detach(), c.detach()

    def _masked(self, x: Tensor) -> Tensor:
        """Hide a few neighbouring bands of a third of the streams behind the frame's mean (SpecAugment)."""
        mels = x.shape[2]
        width = torch.randint(0, mels // 6, (len(x), 1, 1)) * (torch.rand(len(x), 1, 1) < 0.33)
        start = torch.randint(0, mels, (len(x), 1, 1))
        band = torch.arange(mels)[None, None, :]
        return torch.where((band >= start) & (band < start + width), x.mean(dim=2, keepdim=True), x)

    def _learning_rate(self) -> float:
        """Up for a twentieth of the way, then down along a cosine."""
        recipe = self.recipe
        segments = math.ceil(self.composer.samples / recipe.hop_samples / recipe.segment_frames)
        way = self.steps / (recipe.passes * recipe.batches * segments)
        rise = min(1.0, way / 0.05)
        return recipe.learning_rate * rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, way))))

    @torch.no_grad()
    def _follow(self) -> None:
        """The averaged weights follow: a = d * a + (1 - d) * w, with d small at the start."""
        decay = min(self.recipe.average, (1 + self.steps) / (10 + self.steps))
        for a, w in zip(self.average.parameters(), self.model.parameters(), strict=True):
            a.lerp_(w, 1 - decay)

    def save(self, path: Path) -> None:
        """Everything that resuming needs, replaced at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        state = {
            "recipe": self.recipe.to_dict(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
            "history": self.history,
            "best": self.best,
        }
        torch.save(state, partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Go on from `save`'s file. Raises ConfigError when it is of another recipe."""
        state = torch.load(path, weights_only=True)
        # The head decides what is made of the scores, not what the weights become: it may change on the way.
        if dataclasses.replace(Recipe.from_dict(state["recipe"]), head=self.recipe.head) != self.recipe:
            raise ConfigError(f"{path} was trained by another recipe: give this run another --name, or delete it")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps, self.history, self.best = state["steps"], state["history"], state["best"]


def fit(recipe: Recipe, heard: Pools, listeners: tuple[data.Clip, ...], path: Path, bar: bool = True) -> Learner:
    """All passes, or until the doubt of the listeners (never learnt from) has not fallen for `patience_passes`."""
    learner = Learner(recipe, Composer(heard, recipe))
    if path.is_file():
        learner.resume(path)
    while len(learner.history) < recipe.passes:
        number = len(learner.history)
        if number - learner.best["passes"] > recipe.patience_passes:
            break
        mean = learner.one_pass(number, bar)
        row = {"pass": number + 1.0, "loss": mean}
        if listeners:
            heard_as = score.clips(learner.average, listeners, recipe)
            row |= {name: heard_as[name] for name in ("events", "pooled", "doubt")}
        learner.history.append(row)
        if row.get("doubt", -math.inf) <= learner.best["loss"]:
            weights = {name: value.clone() for name, value in learner.average.state_dict().items()}
            learner.best = {"loss": row.get("doubt", math.inf), "passes": number + 1, "weights": weights}
        learner.save(path)
        tqdm.write("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return learner


def main(
    leave_out: Annotated[str, typer.Option(help="The speaker of the test: never listened to.")] = "",
    stop_on: Annotated[str, typer.Option(help="Early stopping on this real speaker, not learnt from.")] = "",
    name: Annotated[str, typer.Option(help="The run's folder under runs/.")] = "",
    passes: Annotated[int, typer.Option(help="Passes, instead of the recipe's.")] = RECIPE.passes,
) -> None:
    """Train the digits model."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # what a closed gate lets through; a third of the time goes into it otherwise
    recipe = dataclasses.replace(RECIPE, passes=passes)
    away = {leave_out, stop_on} - {""}
    if unknown := away - set(data.SPEAKERS):
        sys.exit(f"no such speaker: {', '.join(sorted(unknown))}; there are {', '.join(data.SPEAKERS)}")
    learnt = tuple(speaker for speaker in data.SPEAKERS if speaker not in away)
    listeners = data.digits((stop_on,)) if stop_on else synthetic.clips()[1]
    run = data.RUNS / (name or (f"digits-without-{leave_out}" if leave_out else "digits"))
    learner = fit(recipe, pools(learnt), listeners, run / "weights.pt")
    learner.average.load_state_dict(learner.best["weights"])
    metrics: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "learnt": learnt,
        "left_out": leave_out,
        "stopped_on": stop_on or "held-out synthetic voices",
        "best_pass": learner.best["passes"],
        "history": learner.history,
    }
    plot_curves(learner.history, run / "curves.png")
    if leave_out:
        result = score.clips(learner.average, data.digits((leave_out,)), recipe)
        plot_confusion(result["confusion"], run / "confusion.png", f"{leave_out}, left out")
        metrics["test"] = {**result, "confusion": result["confusion"].tolist()}
        print(f"{leave_out}: {100 * result['events']:.1f} % by events, {100 * result['pooled']:.1f} % by pooled scores")
    elif listeners:
        result = score.clips(learner.average, listeners, recipe)
        plot_confusion(result["confusion"], run / "confusion.png", metrics["stopped_on"])
    (run / "metrics.json").write_text(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    typer.run(main)
