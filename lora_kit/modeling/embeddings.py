"""Vectors of texts: pooled hidden states of unit length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.data.batches import MIN_LENGTH_RATIO
from lora_kit.modeling.model_inputs import to_device
from lora_kit.recipe.embedding import Pooling

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _first(states: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return states[:, 0]


def _last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(states), device=states.device)
    return states[rows, mask.sum(dim=1) - 1]


POOLS: Mapping[Pooling, Pool] = {"mean": _mean, "cls": _first, "last": _last}


def embed_batch(model: Any, batch: Mapping[str, torch.Tensor], pooling: Pooling) -> torch.Tensor:
    """Compute the vectors of a batch of texts.

    Args:
        model: base model of transformers, bare or with an adapter.
        batch: `input_ids` and `attention_mask`, each (batch, length) int64, padded on the right.
        pooling: hidden states that become the vector.

    Returns:
        (batch, hidden size) float32, each of length 1.
    """
    states = model(**batch).last_hidden_state.float()
    # The last block may be on another GPU than the inputs.
    pooled = POOLS[pooling](states, batch["attention_mask"].to(states.device))
    return torch.nn.functional.normalize(pooled, dim=-1)


def embed_rows(
    model: Any,
    rows: Sequence[Sequence[int]],
    pooling: Pooling,
    pad_token_id: int,
    device: torch.device,
    max_tokens: int,
) -> torch.Tensor:
    """Compute the vectors of tokenized texts, in batches of similar lengths.

    Args:
        model: model as in `embed_batch`.
        rows: token ids of each text, none empty.
        pooling: hidden states that become the vector.
        pad_token_id: token that fills shorter rows.
        device: device of the model's inputs.
        max_tokens: maximum tokens of a batch, padding included; a longer text is a batch of its
            own.

    Returns:
        (texts, hidden size) float32 in the order of the texts.
    """
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    found: list[torch.Tensor] = []
    for numbers in _batches(order, rows, max_tokens):
        batch = to_device(pad_right([rows[number] for number in numbers], pad_token_id), device)
        found.append(embed_batch(model, batch, pooling))
    places = torch.empty(len(order), dtype=torch.int64)
    places[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(found)[places.to(found[0].device)]


def _batches(
    order: Sequence[int], rows: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[list[int]]:
    """Yield the texts of each batch, longest first, none of them mostly padding."""
    batch: list[int] = []
    for number in order:
        longest = len(rows[batch[0]]) if batch else 0
        is_full = longest * (len(batch) + 1) > max_tokens
        if batch and (is_full or len(rows[number]) < MIN_LENGTH_RATIO * longest):
            yield batch
            batch = []
        batch.append(number)
    yield batch
