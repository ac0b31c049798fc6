"""Scoring of texts by a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.evaluation.item import NumberRequest, Outcome, TextRequest
from lora_kit.modeling.model_inputs import to_device


def score_texts(
    model: Any, requests: Sequence[TextRequest], pad_token_id: int, device: torch.device
) -> list[Outcome]:
    """Compute the outputs of a head for each text: log-probabilities of classes, or numbers.

    Args:
        model: head with its backbone that maps `input_ids` and `attention_mask` (batch, length) to
            `logits` (batch, outputs).
        requests: tokenized texts, all of one kind.
        pad_token_id: token that fills shorter rows.
        device: device of the model.
    """
    batch = to_device(pad_right([request.input_ids for request in requests], pad_token_id), device)
    logits = model(**batch).logits.double()
    has_numbers = isinstance(requests[0], NumberRequest)
    rows = logits.tolist() if has_numbers else logits.log_softmax(dim=-1).tolist()
    return [
        Outcome(log_likelihoods=tuple(row), tokens=request.length)
        for row, request in zip(rows, requests, strict=True)
    ]
