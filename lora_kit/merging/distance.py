"""Distances between the next-token distributions of two models."""

from __future__ import annotations

import torch


def kl_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Compute KL(p || q) at each position.

    Args:
        p: log-probabilities of one model, (positions, vocabulary) float32.
        q: log-probabilities of the other model, (positions, vocabulary) float32.

    Returns:
        (positions,) float32, in nats.
    """
    return (p.exp() * (p - q)).sum(dim=-1).clamp(min=0)


def top1_agreement(p: torch.Tensor, q: torch.Tensor) -> float:
    """Compute the share of positions at which both models rank the same token first.

    Args:
        p: log-probabilities of one model, (positions, vocabulary) float32.
        q: log-probabilities of the other model, (positions, vocabulary) float32.
    """
    return float((p.argmax(dim=-1) == q.argmax(dim=-1)).float().mean())
