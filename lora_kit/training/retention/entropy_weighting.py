"""Entropy weighting: tokens at which the model is sure of something else are hardly learned."""

from __future__ import annotations

import math

import torch


def entropy_weights(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return the weight of each supervised token's loss, between 0 and 1, without a gradient.

    Entropy-adaptive fine-tuning (Diao et al. 2026, arXiv:2601.02151): the loss of a token is
    w * -log q(y), with w = H(q_K) / ln K. q_K is the model's current distribution over its K most
    likely tokens, renormalized as in the authors' code; H(q_K) approximates the entropy of all, and
    ln K is its maximum. Where the model is sure (H near 0) and the target y improbable, a
    "confident conflict", plain training makes its largest and most destructive updates; here such a
    token gets nearly none. Unlike `token_masking`, improbable tokens of which the model is unsure
    are learned.

    The weighted losses are added up and divided by the number of supervised tokens, like plain
    losses, not by the sum of the weights: a batch without anything uncertain changes little. The
    gradient is thus smaller than that of the plain loss, by about the mean weight
    (`entropy_weight` in metrics.jsonl). AdamW does not depend on a constant factor, so the learning
    rate keeps its meaning; `training.max_grad_norm` clips less.

    Args:
        logits: (supervised, vocabulary), of any float dtype.
        top_k: K; at most the vocabulary is used.

    Returns:
        (supervised,) float32.
    """
    top_k = min(top_k, logits.shape[-1])
    likeliest = logits.detach().topk(top_k, dim=-1, sorted=False).values.float()
    entropy: torch.Tensor = torch.special.entr(likeliest.softmax(dim=-1)).sum(dim=-1)
    return entropy / math.log(top_k)
