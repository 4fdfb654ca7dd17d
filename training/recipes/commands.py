"""Forty Arabic commands at 16 kHz, speakers never heard: log-mel frames every 30 ms, as a stream.

Cost: the CRNN 54 s of one core a pass of 800 batches, so 18 minutes; CELL=lstm 27 s a pass, so 7 to 8 minutes (24 by
the clock beside seven other processes). 0.9 MB exported, each.
Expected, on the six val speakers, whole = streamed: the CRNN 97.6 % (95.5 in noise at 10 dB, 85.8 at 0 dB), the LSTM
95.6 %. The shipped weights were trained in two runs: 11 passes, and 9 more from there after the quiet ends of words had
been found cut off; the LSTM before that (`training/metrics/commands.json`, `commands-lstm.json`, with their recipes):

    make train TASK=commands CELL=crnn RUN=commands-crnn SET="passes=11"
    make train TASK=commands SET="begin=commands-crnn seed=8 passes=9 learning_rate=2e-3 warm_up=0.03 average=0.999"
    make evaluate export TASK=commands
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.bundle import Bundle
from pipeline.errors import ConfigError
from pipeline.manifest import InputSpec, Manifest, PowerFrontend, Provenance
from training import augment, data, keywords
from training import commands_scenes as scenes
from training.commands_data import LABELS, NOTHING, RATE_HZ, WORDS, Composer, clips, foreign
from training.graph import model_spec
from training.keywords import Head
from training.losses import mean
from training.models import LogMel, Net
from training.plots import plot_confusion
from training.recipe import Recipe
from training.task import Batch, Task, encoder_of

HEAD = Head(
    smooth_frames=6,
    threshold=0.6,
    final_frames=80,
    lead_frames=10,
    trail_frames=13,
    tail_frames=12,
)
NOISES_DB = (10.0, 0.0)
LICENCE = "Apache-2.0; learnt from Arabic Speech Commands (CC BY 4.0) and Speech Commands' noises (CC BY 4.0)"


@dataclass(frozen=True)
class Commands(Recipe):
    """Fields beyond `Recipe`'s: samples to frames; the composed streams, probabilities of a stream and of a word.

    speakers: only the first so many of each split, for tests; 0: all. reuse: times a composed signal is heard.
    silent: of the streams, without a word. foreign, spliced: of the words, English ones and such as are two halves.
    stretched: of the streams, spoken faster or slower by one of `rates` at the same pitch.
    decide_from: from this part of a word on, it alone is right, until decide_after_frames after its end; then for
    fade_frames background is right as well. pooled: the weight of the loss of a word's pooled probabilities.
    """

    name: str = "commands"
    window_samples: int = 640
    hop_samples: int = 480
    mels: int = 40
    cepstra: int = 0
    log_floor: float = 1e-6
    speakers: int = 0
    reuse: int = 3
    stream_frames: int = 84
    fresh: float = 0.7
    lead_s: float = 0.4
    gap_s: float = 0.2
    silent: float = 0.06
    foreign: float = 0.06
    spliced: float = 0.06
    stretched: float = 0.5
    rates: tuple[float, ...] = (0.8, 1.2, 1.4)
    reverberant: float = 0.1
    noisy: float = 0.7
    snr_low_db: float = -3.0
    snr_high_db: float = 30.0
    ending: float = 0.5
    equalised: float = 0.7
    warp: float = 0.14
    masked_bands: int = 6
    masked_frames: int = 4
    decide_from: float = 0.7
    decide_after_frames: int = 7
    fade_frames: int = 3
    word_weight: float = 2.0
    pooled: float = 1.0
    head: Head = HEAD


RECIPE = Commands(
    cell="crnn",
    layers=1,
    hidden=160,
    options={"channels": (24, 48), "taps": (3, 3)},
    dropout=0.2,
    dropout_output=0.2,
    dropout_locked=True,
    passes=20,
    batches=800,
    streams=16,
    learning_rate=3e-3,
    weight_decay=1e-2,
    average=0.998,
)
SIZES = {"lstm": {"layers": "2", "hidden": "128", "passes": "16"}}
TINY = {
    "layers": "1",
    "hidden": "32",
    "mels": "20",
    "options.channels": "4,8",
    "speakers": "1",
    "streams": "8",
    "stream_frames": "64",
    "stretched": "0",
    "foreign": "0",
    "passes": "3",
    "batches": "8",
    "average": "0.5",
    "learning_rate": "1e-2",
}


class CommandsTask(Task[Commands]):
    """18 speakers to learn from, 6 to judge by: the corpus's own split."""

    max_bytes = 4_000_000
    reads = ("label_smoothing",)
    note = (
        "scores: the corpus's six val speakers, from whom nothing was learnt; what is done to the training words was "
        "chosen looking at them, so read these as a little optimistic"
    )

    def __init__(self, recipe: Commands) -> None:
        super().__init__(recipe)
        if recipe.leave_out and not (data.corpus("arabic_commands") / "train" / recipe.leave_out).is_dir():
            raise ConfigError(f"no such speaker in train: {recipe.leave_out!r}")
        self._composer: Composer | None = None

    @property
    def composer(self) -> Composer:
        """What is heard in training; read when first asked for."""
        if self._composer is None:
            learnt = tuple(
                clip for clip in clips("train", self.recipe.speakers) if clip.speaker != self.recipe.leave_out
            )
            self._composer = Composer(learnt, self.recipe, foreign("train") if self.recipe.foreign else ())
        return self._composer

    def build(self) -> Net:
        r = self.recipe
        front = LogMel(augment.filterbank(RATE_HZ, r.window_samples, r.mels), floor=r.log_floor, cepstra=r.cepstra)
        return Net(front, encoder_of(r, front.outputs), len(LABELS))

    @torch.no_grad()
    def prepare(self, net: Net) -> None:
        """Mean and scale by a batch that training never learns from."""
        heard = self.composer.batch(2**31, True)
        net.front.fit(net.features(torch.from_numpy(heard.power)))

    def batch(self, index: int, context: Any) -> tuple[Batch, Any]:
        heard = self.composer.batch(index, context is None)
        target = {name: torch.from_numpy(getattr(heard, name)) for name in ("label", "sure", "word")}
        power = torch.from_numpy(heard.power)
        weight = torch.ones(power.shape[:2])
        bank = torch.from_numpy(heard.bank)
        return Batch(power, target, weight, torch.from_numpy(heard.fresh), {"bank": bank}), index

    def features(self, net: Net, batch: Batch) -> Tensor:
        """Each stream through another throat's bank; some bands and frames hidden (SpecAugment, arXiv 1904.08779)."""
        front = net.front
        if not isinstance(front, LogMel):
            raise ConfigError("commands are heard through log-mel bands")
        x = front.features(batch.x, batch.extra["bank"])
        for axis, most in (
            (2, self.recipe.masked_bands),
            (2, self.recipe.masked_bands),
            (1, self.recipe.masked_frames),
        ):
            x = hidden(x, axis, most)
        return x

    def loss(self, logits: Tensor, target: dict[str, Tensor], weight: Tensor) -> Tensor:
        """-log of what is allowed, a frame; and -log of the right word's share of its pooled probabilities, a word."""
        r = self.recipe
        label, sure, word = target["label"], target["sure"], target["word"]
        log_p = logits.log_softmax(dim=-1)
        named = log_p.gather(-1, label[..., None])[..., 0]
        either = torch.logaddexp(named, log_p[..., NOTHING])
        right = torch.where(sure, named, either)
        each = -(1 - r.label_smoothing) * right - r.label_smoothing * log_p.mean(dim=-1)
        total = mean(each, weight * torch.where(sure & (label != NOTHING), r.word_weight, 1.0))
        if r.pooled and (word > 0).any():
            total = total + r.pooled * pooled_loss(log_p.exp(), label, word * (weight > 0))
        return total

    def validate(self, net: Net) -> dict[str, float]:
        found = self._figures(net)
        return {name: float(found[name]) for name in ("loss", "events", "pooled")}

    def _figures(self, net: Net) -> dict[str, Any]:
        heard = self._listeners()
        wanted = np.array([clip.label for clip in heard])
        return keywords.figures(net, [clip.samples for clip in heard], wanted, LABELS, self.recipe)

    def _listeners(self) -> tuple[Any, ...]:
        """Whom nothing was learnt from: the corpus's `val` speakers, or the one that is left out."""
        if self.recipe.leave_out:
            return tuple(clip for clip in clips("train", self.recipe.speakers) if clip.speaker == self.recipe.leave_out)
        return clips("val", self.recipe.speakers)

    def manifest(self, provenance: Provenance) -> Manifest:
        r = self.recipe
        return Manifest(
            task="40 Arabic commands, spoken; labels in English",
            labels=LABELS,
            licence=LICENCE,
            provenance=provenance,
            input=InputSpec(sample_rate_hz=RATE_HZ),
            frontend=PowerFrontend(window_samples=r.window_samples, hop_samples=r.hop_samples),
            model=model_spec(self.build(), tail_frames=r.head.tail_frames),
            head=r.head.spec(),
        )

    def evaluate(self, bundle: Bundle) -> dict[str, Any]:
        """Clips clean and in noise, whole and streamed; words in long recordings, and false alarms."""
        heard = self._listeners()
        wanted = [clip.label for clip in heard]
        found = keywords.judged(bundle, [clip.samples for clip in heard], wanted)
        for snr_db in NOISES_DB:
            result = keywords.judged(bundle, scenes.noisy(heard, snr_db), wanted)
            found["same"] &= result["same"]
            found[f"accuracy_at_{snr_db:.0f}_db"] = result["accuracy_streaming"]
        return found | scenes.listened(bundle, heard)

    def report(self, net: Net, folder: Path) -> dict[str, Any]:
        found = self._figures(net)
        plot_confusion(found["confusion"], folder / "confusion.png", "speakers never heard", WORDS)
        return {"listeners": {name: float(found[name]) for name in ("loss", "events", "pooled")}}

    def pictures(self, folds: dict[str, dict[str, Any]], folder: Path) -> None:
        for result in folds.values():
            confusion = np.array(result["confusion"])
            plot_confusion(confusion, folder / "confusion.png", "speakers never heard, streamed", WORDS)

    def data_sha256(self) -> str:
        return data.sha256(("arabic_commands", "noise"))


def hidden(x: Tensor, axis: int, most: int) -> Tensor:
    """`[B, T, M]` with up to `most` neighbours along an axis set to the stream's mean, somewhere in each stream."""
    size = x.shape[axis]
    width = torch.randint(0, most + 1, (len(x), 1, 1), device=x.device)
    start = torch.randint(0, size, (len(x), 1, 1), device=x.device)
    at = torch.arange(size, device=x.device).reshape([1, -1, 1] if axis == 1 else [1, 1, -1])
    return torch.where((at >= start) & (at < start + width), x.mean(dim=(1, 2), keepdim=True), x)


def pooled_loss(p: Tensor, label: Tensor, word: Tensor) -> Tensor:
    """Scalar: over the frames in which a word is due, its share of all words' probabilities, -log, mean over words.

    p `[B, t, C]`; label `[B, t]`; word `[B, t]`: n + 1 in the frames of the nth word of a row, 0 elsewhere.
    """
    count = int(word.max())
    which = torch.nn.functional.one_hot(word, count + 1)[..., 1:].to(p.dtype)
    sums = torch.einsum("btn,btc->bnc", which, p[..., :NOTHING]) + 1e-6
    name = (which * label[..., None]).amax(dim=1).to(torch.int64).clamp_max(NOTHING - 1)
    share = sums.gather(-1, name[..., None])[..., 0] / sums.sum(dim=-1)
    there = which.amax(dim=1)
    return -(share.log() * there).sum() / there.sum()


def task(recipe: Commands = RECIPE) -> CommandsTask:
    """The task under a recipe."""
    return CommandsTask(recipe)
