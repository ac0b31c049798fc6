"""Scoring of texts by a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.evaluation.item import Outcome
from lora_kit.evaluation.requests import ClassRequest, LabelRequest, TagRequest, TextRequest
from lora_kit.modeling.model_inputs import to_device


def score_texts(
    model: Any, requests: Sequence[TextRequest], pad_token_id: int, device: torch.device
) -> list[Outcome]:
    """Compute the outputs of a head for each text, by the kind of the requests.

    Classes and the tags of words have log-probabilities, numbers their values, and labels their
    logits, with the decision by the model's `thresholds`.

    Args:
        model: head with its backbone that maps `input_ids` and `attention_mask` (batch, length) to
            `logits` (batch, outputs), and for labels gives `thresholds` (outputs,). For tags, it
            also reads `words`, with the position of each word's first token, and gives `logits`
            (batch, length, tags).
        requests: tokenized texts, all of one kind.
        pad_token_id: token that fills shorter rows.
        device: device of the model.
    """
    batch = to_device(pad_right([request.input_ids for request in requests], pad_token_id), device)
    of_words = [request for request in requests if isinstance(request, TagRequest)]
    if of_words:
        return _tag_outcomes(model, of_words, batch)
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


def _tag_outcomes(
    model: Any, requests: Sequence[TagRequest], batch: dict[str, torch.Tensor]
) -> list[Outcome]:
    words = [request.words_read for request in requests]
    logits = model(**batch, words=words).logits.double().log_softmax(dim=-1).cpu()
    return [
        Outcome(
            log_likelihoods=tuple(row[[start for _, start in of_row]].flatten().tolist()),
            tokens=request.length,
        )
        for row, of_row, request in zip(logits, words, requests, strict=True)
    ]
