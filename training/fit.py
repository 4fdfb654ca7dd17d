"""The trainer: truncated back-propagation through time over streams that go on from batch to batch.

It knows no task. A run is decided by its recipe alone: batches by (seed, index), what is drawn within a pass by (seed,
pass). Hence a run that was stopped goes on after its last whole pass and ends at the same bytes.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import ConfigError
from training import data
from training.precision import Precision
from training.task import Batch, Task

LATER = ("head", "device", "name")
"""Fields of a recipe that may change on the way: what is made of the scores, and where it is computed."""

FLOOR = 0.01  # the cosine's end, as a share of the highest learning rate


class Delay:
    """Targets of a net that answers `frames` late: row t of its scores is frame t - frames. Carried like a state."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self._kept: tuple[dict[str, Tensor], Tensor] | None = None

    def __call__(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """(target, weight) moved back; what a fresh stream has not yet been asked counts nothing."""
        if not self.frames:
            return batch.target, batch.weight
        blank = {k: v.new_zeros(len(v), self.frames, *v.shape[2:]) for k, v in batch.target.items()}
        kept, owed = self._kept or (blank, batch.weight.new_zeros(len(batch.weight), self.frames))
        owed = owed * ~batch.fresh[:, None]
        target = {k: torch.cat([kept[k], v], dim=1) for k, v in batch.target.items()}
        weight = torch.cat([owed, batch.weight], dim=1)
        frames = batch.weight.shape[1]
        self._kept = {k: v[:, frames:] for k, v in target.items()}, weight[:, frames:]
        return {k: v[:, :frames] for k, v in target.items()}, weight[:, :frames]


class Learner:
    """Net, optimiser and average weights, and how far they have come."""

    def __init__(self, task: Task[Any]) -> None:
        recipe = task.recipe
        for name in ("label_smoothing", "class_balance"):
            if getattr(recipe, name) and name not in task.reads:
                raise ConfigError(f"{recipe.name}: the loss of this task has no {name}; leave it at 0")
        torch.manual_seed(recipe.seed)
        self.task, self.recipe = task, recipe
        self.precision = Precision(recipe.device, recipe.amp)
        self.net = task.build()
        task.prepare(self.net)
        if recipe.begin:
            self._begin(data.RUNS / recipe.begin / "weights.pt")
        self.net.to(self.precision.device)
        self.average = copy.deepcopy(self.net)
        learnt = [p for p in self.net.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(learnt, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.steps = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"loss": math.inf, "passes": 0, "weights": self.average.state_dict()}
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.logs: Any = None

    def _begin(self, path: Path) -> None:
        """With the kept weights of another run, its mean and scale among them. Raises ConfigError."""
        if not path.is_file():
            raise ConfigError(f"begin: no weights at {path}")
        try:
            self.net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["best"]["weights"])
        except RuntimeError:
            raise ConfigError(f"begin: the weights at {path} are of another model than this recipe makes") from None

    def one_pass(self, number: int, bar: bool = True) -> float:
        """`batches` batches from a fresh start; the mean loss of a segment."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed * 1_000_003 + number)
        self.net.train()
        state: tuple[Tensor, ...] | None = None
        delay, total = Delay(self.net.latency), 0.0
        context: Any = None
        counts = range(number * recipe.batches, (number + 1) * recipe.batches)
        title = f"pass {number + 1}/{recipe.passes}"
        often_s = 0.1 if sys.stderr.isatty() else 30.0
        shown = tqdm(counts, desc=title, unit="batch", leave=False, disable=not bar, mininterval=often_s)
        for n, index in enumerate(shown):
            batch, context = self.task.batch(index, context)
            batch = batch.to(self.precision.device)
            state = self._begun(batch.fresh, state)
            target, weight = delay(batch)
            mean, state = self._descend(index, batch, target, weight, state)
            total += mean
            shown.set_postfix(loss=f"{total / (n + 1):.4g}", refresh=False)
        return float(total / recipe.batches)

    def _begun(self, fresh: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """The carried state, with the initial one in the rows that begin."""
        blank: tuple[Tensor, ...] = tuple(s.to(fresh.device) for s in self.net.initial_state(len(fresh)))
        if state is None:
            return blank
        after = []
        for spec, new, old in zip(self.net.states, blank, state, strict=True):
            shape = [1] * new.ndim
            shape[spec.batch_axis] = -1
            after.append(torch.where(fresh.reshape(shape), new, old))
        return tuple(after)

    def _descend(
        self, index: int, batch: Batch, target: dict[str, Tensor], weight: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[float, tuple[Tensor, ...]]:
        """One optimiser step a segment; the state goes on, detached, so gradients end where a segment begins."""
        recipe = self.recipe
        with torch.no_grad():
            x = self.task.features(self.net, batch)
        length = recipe.segment_frames or x.shape[1]
        if length % self.net.block or x.shape[1] % self.net.block:
            raise ConfigError(
                f"batches of {x.shape[1]} frames in segments of {length}, but {recipe.cell} takes blocks of "
                f"{self.net.block}: make both multiples of it"
            )
        starts = range(0, x.shape[1], length)
        total = 0.0
        for n, start in enumerate(starts):
            cut = slice(start, start + length)
            rate = self._learning_rate(index + n / len(starts))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            with self.precision.autocast():
                logits, *state_after = self.net.logits_of(x[:, cut], *state)
            value = self.task.loss(logits.float(), {k: v[:, cut] for k, v in target.items()}, weight[:, cut])
            state = tuple(s.detach().to(b.dtype) for s, b in zip(state_after, state, strict=True))
            self.optimiser.zero_grad()
            norm = self.precision.descend(value, self.optimiser, self.net.parameters(), recipe.clip_norm)
            self.steps += 1
            self._follow()
            total += float(value.detach()) / len(starts)
            if self.logs is not None and self.steps % 10 == 0:
                for name, number in (("loss", float(value.detach())), ("gradient_norm", norm), ("learning_rate", rate)):
                    self.logs.add_scalar(f"train/{name}", number, self.steps)
        return total, state

    def _learning_rate(self, batches: float) -> float:
        """Up in a line over the warm-up, and all the way down along a cosine."""
        recipe = self.recipe
        way = batches / (recipe.passes * recipe.batches)
        rise = min(1.0, way / recipe.warm_up) if recipe.warm_up else 1.0
        fall = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, way)))
        return float(recipe.learning_rate * rise * fall)

    @torch.no_grad()
    def _follow(self) -> None:
        """The averaged weights follow: a = d * a + (1 - d) * w, with d small at the start; buffers are the net's."""
        decay = min(self.recipe.average, (1 + self.steps) / (10 + self.steps))
        for a, w in zip(self.average.parameters(), self.net.parameters(), strict=True):
            a.lerp_(w, 1 - decay)
        for kept, new in zip(self.average.buffers(), self.net.buffers(), strict=True):
            kept.copy_(new)

    @torch.no_grad()
    def judged(self) -> dict[str, float]:
        """What the task says of the averaged weights."""
        self.average.eval()
        return self.task.validate(self.average)

    def save(self, path: Path) -> None:
        """Everything that resuming needs, replaced at once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        state = {
            "recipe": self.recipe.to_dict(),
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "steps": self.steps,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        torch.save(state, partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Go on from `save`'s file. Raises ConfigError when it is of another recipe."""
        state = torch.load(path, weights_only=True, map_location=self.precision.device)
        then = type(self.recipe).from_dict(state["recipe"]).to_dict()
        now = self.recipe.to_dict()
        if other := sorted(name for name in now if name not in LATER and now[name] != then[name]):
            told = ", ".join(f"{name} {then[name]} (now {now[name]})" for name in other)
            raise ConfigError(
                f"{path} was trained by another recipe: {told}. Give this run another --name, or delete it"
            )
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.steps, self.history, self.best = state["steps"], state["history"], state["best"]
        self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]


def fit(task: Task[Any], path: Path | None = None, bar: bool = True, logs: bool = False, until: int = 0) -> Learner:
    """All passes, or until the validation loss has not fallen for `patience_passes` of them.

    Args:
        path: where the weights are kept after every pass, and gone on from; None keeps nothing.
        logs: write TensorBoard's files beside it.
        until: stop after this many passes all the same, to go on later; 0: not.
    """
    recipe, learner = task.recipe, Learner(task)
    if path is not None and path.is_file():
        learner.resume(path)
    if logs and path is not None:
        from torch.utils.tensorboard import SummaryWriter

        learner.logs = SummaryWriter(str(path.parent / "tensorboard"), purge_step=learner.steps)
    while len(learner.history) < (until or recipe.passes):
        number = len(learner.history)
        if recipe.patience_passes and number - learner.best["passes"] >= recipe.patience_passes:
            tqdm.write(f"no better since pass {learner.best['passes']}: stopped early")
            break
        began, cpu_began = time.monotonic(), time.process_time()
        mean = learner.one_pass(number, bar)
        found = learner.judged()
        learner.seconds += time.monotonic() - began
        learner.cpu_seconds += time.process_time() - cpu_began
        row = {"pass": number + 1.0, "train_loss": mean, **found, "seconds": round(learner.seconds, 1)}
        learner.history.append(row)
        if not math.isfinite(mean):
            raise ConfigError(f"pass {number + 1}: the loss is {mean}; lower learning_rate or clip_norm")
        if row.get("loss", -math.inf) <= learner.best["loss"] or not recipe.patience_passes:
            weights = {name: value.clone() for name, value in learner.average.state_dict().items()}
            learner.best = {"loss": row.get("loss", math.inf), "passes": number + 1, "weights": weights}
        if path is not None:
            learner.save(path)
        if learner.logs is not None:
            for name, value in row.items():
                learner.logs.add_scalar(f"pass/{name}", value, number + 1)
            learner.logs.flush()
        if bar:
            tqdm.write("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return learner
