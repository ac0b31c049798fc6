"""Shared prefix of a task's requests, such as few-shot examples: encoded once, reused by all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.data.supervision import IGNORE_INDEX
from lora_kit.evaluation.item import (
    ChoiceRequest,
    GenerationRequest,
    HeadRequest,
    LossRequest,
    Request,
)

# Minimum tokens of a prefix; encoding and copying a shorter one costs more than it saves.
MIN_TOKENS = 4


@dataclass(frozen=True)
class Prefix:
    """Encoded prefix of one arm.

    Attributes:
        input_ids: tokens of the prefix.
        cache: keys and values of the tokens, computed with the arm active.
    """

    input_ids: tuple[int, ...]
    cache: Any

    def __len__(self) -> int:
        return len(self.input_ids)

    def repeated(self, rows: int) -> Any:
        """Return a copy of the cache for a batch of rows, since a forward pass appends to it."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


def shared_prefix(requests: Sequence[Request]) -> tuple[int, ...]:
    """Return the tokens that all requests begin with, at most up to the last unscored token.

    That last token stays in each row, since the first scored token is predicted from it. The result
    is empty if fewer than `MIN_TOKENS` tokens are shared.
    """
    leading = [_leading(request) for request in requests if not isinstance(request, HeadRequest)]
    if len(leading) < 2:
        return ()
    # In sorted order, the first and the last sequence share the shortest prefix.
    first, last = min(leading), max(leading)
    length = next(
        (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[:length] if length >= MIN_TOKENS else ()


def _leading(request: LossRequest | ChoiceRequest | GenerationRequest) -> tuple[int, ...]:
    if isinstance(request, LossRequest):
        labels = request.example.labels
        supervised = next(n for n, label in enumerate(labels) if label != IGNORE_INDEX)
        return request.example.input_ids[: max(supervised - 1, 0)]
    return request.prompt_ids[:-1]


def encode_prefix(model: Any, input_ids: tuple[int, ...], device: torch.device) -> Prefix:
    """Run the prefix through the model once and return it with its keys and values."""
    ids = torch.tensor([input_ids], device=device)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    return Prefix(input_ids, cache)
