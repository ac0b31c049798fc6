"""Scoring of texts by a classification head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.evaluation.item import ClassRequest, Outcome
from lora_kit.modeling.model_inputs import to_device


def score_classes(
    model: Any, requests: Sequence[ClassRequest], pad_token_id: int, device: torch.device
) -> list[Outcome]:
    """Compute the log-probability of each class for each text.

    Args:
        model: classifier that maps `input_ids` and `attention_mask` (batch, length) to `logits`
            (batch, classes).
        requests: tokenized texts.
        pad_token_id: token that fills shorter rows.
        device: device of the model.
    """
    batch = to_device(pad_right([request.input_ids for request in requests], pad_token_id), device)
    log_probabilities = model(**batch).logits.double().log_softmax(dim=-1).tolist()
    return [
        Outcome(log_likelihoods=tuple(row), tokens=request.length)
        for row, request in zip(log_probabilities, requests, strict=True)
    ]
