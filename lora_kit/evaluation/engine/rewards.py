"""What a reward model makes of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.evaluation.item import Outcome, RewardRequest
from lora_kit.modeling.likelihood import to_device


def rewarded(
    model: Any, requests: Sequence[RewardRequest], pad_token_id: int, device: torch.device
) -> list[Outcome]:
    """The reward of each answer, a row each.

    Args:
        model: of `input_ids` and `attention_mask` (batch, length) it makes `logits` (batch, 1).
        requests: answers behind their prompts.
        pad_token_id: fills shorter rows.
        device: where the model is.

    Returns:
        Rewards in the place of log-likelihoods: both are log-odds up to what all choices share.
    """
    rows = [ids for request in requests for ids in request.answers]
    batch = to_device(pad_right(rows, pad_token_id), device)
    found = iter(model(**batch).logits[:, 0].double().tolist())
    return [
        Outcome(
            log_likelihoods=tuple(next(found) for _ in request.answers),
            tokens=sum(map(len, request.answers)),
        )
        for request in requests
    ]
