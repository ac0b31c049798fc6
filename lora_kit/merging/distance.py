"""How far two models' next-token distributions are apart."""

from __future__ import annotations

import torch


def kl_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) at each position, nats.

    Args:
        p: log-probabilities, (positions, vocabulary) float32.
        q: the same of the other model.
    """
    return (p.exp() * (p - q)).sum(dim=-1).clamp(min=0)


def top1_agreement(p: torch.Tensor, q: torch.Tensor) -> float:
    """Share of positions with the same most likely token.

    Args:
        p: log-probabilities, (positions, vocabulary) float32.
        q: the same of the other model.
    """
    return float((p.argmax(dim=-1) == q.argmax(dim=-1)).float().mean())
