"""Shared prefix of a task's requests, such as few-shot examples."""

from __future__ import annotations

from collections.abc import Sequence

from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.evaluation.requests import (
    ChoiceRequest,
    GenerationRequest,
    HeadRequest,
    LossRequest,
    Request,
)
from lora_kit.modeling.prefix import common_beginning

# Minimum tokens of a prefix; encoding and copying a shorter one costs more than it saves.
MIN_TOKENS = 4


def shared_prefix(requests: Sequence[Request]) -> tuple[int, ...]:
    """Return the tokens that all requests begin with, at most up to the last unscored token.

    That last token stays in each row, since the first scored token is predicted from it. The result
    is empty if fewer than `MIN_TOKENS` tokens are shared.
    """
    leading = [_leading(request) for request in requests if not isinstance(request, HeadRequest)]
    if len(leading) < 2:
        return ()
    shared = common_beginning(leading)
    return shared if len(shared) >= MIN_TOKENS else ()


def _leading(request: LossRequest | ChoiceRequest | GenerationRequest) -> tuple[int, ...]:
    if isinstance(request, LossRequest):
        labels = request.example.labels
        supervised = next(n for n, label in enumerate(labels) if label != IGNORE_INDEX)
        return request.example.input_ids[: max(supervised - 1, 0)]
    return request.prompt_ids[:-1]
