"""Losses that keep the features of two domains alike."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

# Steepness of the schedule of gradient reversal (Ganin et al. 2016, section 5.2.2).
GAMMA = 10.0


def coral_loss(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the distance between the covariances of two sets of features; scalar, float32.

    ||C_S - C_T||^2 / (||C_S||^2 + ||C_T||^2), with the Frobenius norm: that of Sun and Saenko
    (2016, arXiv:1607.01719, equation 1) up to its divisor, which is 4 d^2 there for d features.
    From 0 to 1, whatever the scale and the number of the features, since the inner product of two
    covariances is never negative; smaller features alone do not lower it.

    Args:
        source: (rows, d) float32, at least two rows.
        target: (rows, d) float32, at least two rows.
    """
    one, other = torch.cov(source.T), torch.cov(target.T)
    size = one.square().sum() + other.square().sum()
    return (one - other).square().sum() / size.clamp(min=torch.finfo(size.dtype).tiny)


def reversal_strength(progress: float) -> float:
    """Return the factor of the reversed gradient, which rises from 0 to 1 during training.

    2 / (1 + exp(-10 p)) - 1 (Ganin et al. 2016, arXiv:1505.07818, section 5.2.2).

    Args:
        progress: share of the training that is over, 0 to 1.
    """
    return 2 / (1 + math.exp(-GAMMA * progress)) - 1


class _Reversal(torch.autograd.Function):
    """Identity whose gradient is multiplied by a negative factor."""

    @staticmethod
    def forward(context: Any, features: torch.Tensor, factor: float) -> torch.Tensor:
        context.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -context.factor * gradients[0], None


def reversed_gradient(features: torch.Tensor, factor: float) -> torch.Tensor:
    """Return features as they are; their gradient is multiplied by -`factor`."""
    reversed_features: torch.Tensor = _Reversal.apply(features, factor)  # type: ignore[no-untyped-call]
    return reversed_features


def domain_classifier(features: int) -> torch.nn.Module:
    """Return a classifier of the domain with one hidden layer, in float32.

    Args:
        features: number of features of a text.
    """
    return torch.nn.Sequential(
        torch.nn.Linear(features, features), torch.nn.ReLU(), torch.nn.Linear(features, 1)
    )


def domain_loss(
    classifier: torch.nn.Module, source: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Return the mean cross-entropy of a domain classifier in nats; scalar, float32.

    Each domain has half of the weight. ln 2 is that of a classifier that cannot tell them apart.

    Args:
        classifier: maps (rows, d) float32 to (rows, 1), the logit of the target.
        source: (rows, d) float32.
        target: (rows, d) float32.
    """
    losses = []
    for features, is_target in ((source, 0.0), (target, 1.0)):
        logits = classifier(features)
        truth = torch.full_like(logits, is_target)
        losses.append(binary_cross_entropy_with_logits(logits, truth))
    return torch.stack(losses).mean()
