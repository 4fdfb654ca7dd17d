"""What a task is to the trainer: batches, a loss, a judgement of what was learnt, a manifest.

The trainer (`training.fit`) knows no corpus, a task knows no optimiser. A module `training/recipes/<task>.py` has

    RECIPE = ...              the recipe (a `Recipe`) that gives the figures in the module's docstring
    TINY = {...}              overrides (name: text) for a run of seconds, in which the loss must fall clearly
    SIZES = {cell: {...}}     optional: overrides for a cell that is not the recipe's own, where it is asked for
    def task(recipe): ...     the Task
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import onnx
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.manifest import Manifest, Provenance
from training import recipes
from training.models import Encoder, Net, encoder
from training.recipe import Recipe

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class Batch:
    """B streams over T frames; row b continues row b of the batch before it unless it is fresh.

    x: `[B, T, F]`, what the exported graph's input gets. target: `[B, T, ...]` each. weight: `[B, T]`, how much a
    frame's loss counts (0: not at all). fresh: `[B]` bool, a new stream: state zero before its first frame.
    extra: `[B, ...]` each, whatever else `Task.features` needs of a stream; never cut in time.
    """

    x: Tensor
    target: dict[str, Tensor]
    weight: Tensor
    fresh: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved = ({k: v.to(device) for k, v in part.items()} for part in (self.target, self.extra))
        target, extra = moved
        return replace(
            self,
            x=self.x.to(device),
            target=target,
            weight=self.weight.to(device),
            fresh=self.fresh.to(device),
            extra=extra,
        )


class Task(ABC, Generic[R]):
    """One task under one recipe.

    folds: the names of `recipe.leave_out` over which `training.evaluate` goes; () where the corpus has a split of its
    own. max_bytes: of the exported bundle. note: what its provenance says of its scores.
    reads: which of the recipe's `label_smoothing` and `class_balance` its loss reads; the trainer refuses the others.
    """

    folds: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()
    max_bytes: int = 1_000_000
    reads: tuple[str, ...] = ()
    note: str = ""

    def __init__(self, recipe: R) -> None:
        self.recipe = recipe

    @abstractmethod
    def build(self) -> Net:
        """A new net of the recipe's cell, its weights drawn from torch's generator (which the trainer has seeded)."""

    def prepare(self, net: Net) -> None:
        """Fix what is not learnt (mean and scale of the frames) from training data alone."""

    @abstractmethod
    def batch(self, index: int, context: Any) -> tuple[Batch, Any]:
        """Batch `index`, decided by (recipe.seed, index) and by the context that the batch before it gave (None at the
        start of a pass, where every row is fresh): a resumed run gets identical batches."""

    def features(self, net: Net, batch: Batch) -> Tensor:
        """`[B, T, I]`: what the encoder is fed in training. Here augmentations of features belong; random choices come
        from torch's generator."""
        return net.features(batch.x)

    @abstractmethod
    def loss(self, logits: Tensor, target: dict[str, Tensor], weight: Tensor) -> Tensor:
        """Scalar, of a segment: `[B, t, C]` logits (float32), targets `[B, t, ...]`, weight `[B, t]`."""

    @abstractmethod
    def validate(self, net: Net) -> dict[str, float]:
        """Figures on data that no training sees (called with `net` in eval mode, without gradients): "loss", at which
        early stopping looks, and the task's own. On whom: the recipe's `leave_out`, or the corpus's own split."""

    def report(self, net: Net, folder: Path) -> dict[str, Any]:
        """Pictures into a run's folder once it is trained, and figures for its metrics.json."""
        return {}

    def manifest(self, provenance: Provenance) -> Manifest:
        """What the runtime is to know of the exported model."""
        raise ConfigError(f"{self.recipe.name}: this task shows what a model remembers; it has no bundle")

    def untrained(self, bundle: str, provenance: Provenance) -> tuple[onnx.ModelProto, Manifest]:
        """The graph and the manifest of one of `bundles`: it learns within each stream, or not at all."""
        raise ConfigError(f"{self.recipe.name}: its bundle is made of trained weights")

    def evaluate(self, bundle: Any) -> dict[str, Any]:
        """Figures of a bundle (`pipeline.bundle.Bundle`) on data that no training saw: by forward on whole signals and
        by streaming step. "same" says whether the two agree in every answer; evaluation fails where they do not."""
        raise ConfigError(f"{self.recipe.name}: this task has no bundle to evaluate")

    def summary(self, folds: dict[str, dict[str, Any]]) -> dict[str, float]:
        """The plain numbers of `evaluate`, mean over the folds (one, named "", where there are none): what goes into
        the bundle's provenance."""
        first = next(iter(folds.values()))
        names = [k for k, v in first.items() if isinstance(v, int | float) and not isinstance(v, bool)]
        return {name: float(sum(result[name] for result in folds.values()) / len(folds)) for name in names}

    def pictures(self, folds: dict[str, dict[str, Any]], folder: Path) -> None:
        """Pictures of what `evaluate` found, into a folder."""
        return

    def data_sha256(self) -> str:
        """One hash over what was learnt from; generated data have their recipe alone."""
        return "generated"


class RecipeModule(Protocol):
    """A module of `training/recipes`."""

    RECIPE: Recipe
    TINY: dict[str, str]

    def task(self, recipe: Recipe) -> Task[Any]: ...


def names() -> list[str]:
    """All tasks, in order."""
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def find(name: str) -> RecipeModule:
    """The recipe module of a task. Raises ConfigError that lists what there is."""
    if name not in names():
        raise ConfigError(f"no task {name!r}; there are: {', '.join(names())}")
    return importlib.import_module(f"training.recipes.{name}")


def encoder_of(recipe: Recipe, inputs: int) -> Encoder:
    """The recipe's architecture over frames `[B, T, inputs]`. Raises ConfigError: no such cell, or not its option."""
    return encoder(
        recipe.cell,
        inputs,
        recipe.layers,
        recipe.hidden,
        dropout_input=recipe.dropout_input,
        dropout=recipe.dropout,
        dropout_locked=recipe.dropout_locked,
        dropout_output=recipe.dropout_output,
        **recipe.options,
    )


@torch.no_grad()
def whole(net: Net, x: Tensor) -> Tensor:
    """`[B, T, F]` whole signals to `[B, T, C]` as the exported graph and its runtime give it, from a fresh state.

    Row t is that of frame t: what a net with latency owes is asked for with frames of zeros, as at a stream's end.
    """
    frames = x.shape[1]
    more = net.latency + -(frames + net.latency) % net.block
    device = next(net.parameters()).device
    padded = torch.cat([x, x.new_zeros(len(x), more, x.shape[2])], dim=1) if more else x
    y: Tensor = net(padded.to(device), *net.initial_state(len(x)))[0]
    return y[:, net.latency : net.latency + frames].cpu()
