"""What all requests of a task begin with, such as solved examples: encoded once, used by each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.data.tokenization import IGNORED
from lora_kit.evaluation.item import (
    ChoiceRequest,
    GenerationRequest,
    LossRequest,
    OfHead,
    Request,
)

# Below it, encoding a prefix and carrying it along costs more than it saves.
SHORTEST = 4


@dataclass(frozen=True)
class Prefix:
    """Tokens and the keys and values that a model, as one arm has it, made of them."""

    input_ids: tuple[int, ...]
    cache: Any

    def __len__(self) -> int:
        return len(self.input_ids)

    def repeated(self, rows: int) -> Any:
        """A cache of its own for a batch: a forward pass adds to it."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


def shared_prefix(requests: Sequence[Request]) -> tuple[int, ...]:
    """The tokens that all requests begin with, but for the last one before what is scored.

    Empty where there are too few to be worth it.
    """
    leading = [_leading(request) for request in requests if not isinstance(request, OfHead)]
    if len(leading) < 2:
        return ()
    # The first and the last in order differ the earliest.
    first, last = min(leading), max(leading)
    length = next(
        (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[:length] if length >= SHORTEST else ()


def _leading(request: LossRequest | ChoiceRequest | GenerationRequest) -> tuple[int, ...]:
    if isinstance(request, LossRequest):
        labels = request.example.labels
        supervised = next(n for n, label in enumerate(labels) if label != IGNORED)
        return request.example.input_ids[: max(supervised - 1, 0)]
    return request.prompt_ids[:-1]


def encode(model: Any, input_ids: tuple[int, ...], device: torch.device) -> Prefix:
    """Run the prefix through the model once."""
    ids = torch.tensor([input_ids], device=device)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    return Prefix(input_ids, cache)
