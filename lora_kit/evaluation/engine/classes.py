"""What a head makes of a batch of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.evaluation.item import ClassRequest, Outcome
from lora_kit.modeling.likelihood import to_device


def classified(
    model: Any, requests: Sequence[ClassRequest], pad_token_id: int, device: torch.device
) -> list[Outcome]:
    """The log-probability of each class, for each text.

    Args:
        model: a classifier: of `input_ids` and `attention_mask` (batch, length) it makes `logits`
            (batch, classes).
        requests: the texts.
        pad_token_id: fills shorter rows.
        device: where the model is.
    """
    batch = to_device(pad_right([request.input_ids for request in requests], pad_token_id), device)
    found = model(**batch).logits.double().log_softmax(dim=-1).tolist()
    return [
        Outcome(log_likelihoods=tuple(row), tokens=request.length)
        for row, request in zip(found, requests, strict=True)
    ]
