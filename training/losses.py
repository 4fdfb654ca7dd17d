"""Losses over frames, weighted; what several tasks share."""

from __future__ import annotations

import torch
from torch import Tensor


def mean(loss: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean of a loss a frame, both `[B, t]`; 0 where nothing counts."""
    return (loss * weight).sum() / weight.sum().clamp_min(1e-6)


def cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor, smoothing: float = 0.0, classes: Tensor | None = None
) -> Tensor:
    """Scalar: logits `[B, t, C]`, label `[B, t]` int64, weight `[B, t]`; classes `[C]`: weights of the classes."""
    log_p = logits.log_softmax(dim=-1)
    right = -log_p.gather(-1, label[..., None])[..., 0]
    each = (1 - smoothing) * right - smoothing * log_p.mean(dim=-1)
    return mean(each, weight if classes is None else weight * classes.to(weight.device)[label])


def squared_error(values: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Scalar: values and wanted `[B, t, C]`, weight `[B, t]`; the mean over C and the frames that count."""
    return mean((values - wanted).square().mean(dim=-1), weight)


def class_weights(counts: Tensor, balance: float) -> Tensor:
    """`[C]` frames of each class to `[C]` weights (n_mean / n_class) ** balance; a class that is never seen weighs 1.

    >>> class_weights(torch.tensor([10, 30]), 1.0)
    tensor([2.0000, 0.6667])
    """
    seen = counts > 0
    average = counts[seen].to(torch.float32).mean()
    return torch.where(seen, (average / counts.clamp_min(1)) ** balance, torch.ones(len(counts)))
