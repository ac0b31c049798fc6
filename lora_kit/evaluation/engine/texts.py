"""Scoring of texts by a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.evaluation.item import ClassRequest, LabelRequest, Outcome, TextRequest
from lora_kit.modeling.model_inputs import to_device


def score_texts(
    model: Any, requests: Sequence[TextRequest], pad_token_id: int, device: torch.device
) -> list[Outcome]:
    """Compute the outputs of a head for each text, by the kind of the requests.

    Classes have log-probabilities, numbers their values, and labels their logits, with the decision
    by the model's `thresholds`.

    Args:
        model: head with its backbone that maps `input_ids` and `attention_mask` (batch, length) to
            `logits` (batch, outputs), and for labels gives `thresholds` (outputs,).
        requests: tokenized texts, all of one kind.
        pad_token_id: token that fills shorter rows.
        device: device of the model.
    """
    batch = to_device(pad_right([request.input_ids for request in requests], pad_token_id), device)
    given = model(**batch)
    logits = given.logits.double()
    decisions: list[list[bool]] = [[]] * len(requests)
    if isinstance(requests[0], ClassRequest):
        logits = logits.log_softmax(dim=-1)
    elif isinstance(requests[0], LabelRequest):
        decisions = (logits.sigmoid() >= given.thresholds).tolist()
    return [
        Outcome(log_likelihoods=tuple(row), greedy=tuple(decided), tokens=request.length)
        for row, decided, request in zip(logits.tolist(), decisions, requests, strict=True)
    ]
