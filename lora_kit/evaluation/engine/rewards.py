"""Scoring of answers by a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import RewardRequest
from lora_kit.modeling.model_inputs import to_device


def score_rewards(
    model: Any, requests: Sequence[RewardRequest], pad_token_id: int, device: torch.device
) -> list[Outcome]:
    """Compute the reward of each answer, one row per answer.

    Args:
        model: reward model that maps `input_ids` and `attention_mask` (batch, length) to `logits`
            (batch, 1).
        requests: answers, each with its prompt in front.
        pad_token_id: token that fills shorter rows.
        device: device of the model.

    Returns:
        One outcome per request, with the rewards in `log_likelihoods`: both are log-odds up to a
        constant that all choices of a prompt share.
    """
    rows = [ids for request in requests for ids in request.answers]
    batch = to_device(pad_right(rows, pad_token_id), device)
    rewards = iter(model(**batch).logits[:, 0].double().tolist())
    return [
        Outcome(
            log_likelihoods=tuple(next(rewards) for _ in request.answers),
            tokens=sum(map(len, request.answers)),
        )
        for request in requests
    ]
