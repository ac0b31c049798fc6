"""Tokens that several prompts begin with, such as few-shot examples: encoded once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


@dataclass(frozen=True)
class Prefix:
    """Encoded prefix.

    Attributes:
        input_ids: tokens of the prefix.
        cache: keys and values of the tokens, (1, heads, tokens, size) in each layer.
    """

    input_ids: tuple[int, ...]
    cache: Any

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def is_plain(self) -> bool:
        """True if the cache holds keys and values of all tokens, in every layer, and no more."""
        return type(self.cache) is DynamicCache and all(
            type(layer) is DynamicLayer and layer.is_initialized and layer.keys.dim() == 4
            for layer in self.cache.layers
        )

    def repeated(self, rows: int) -> Any:
        """Return a cache for a batch of rows; what a forward pass appends stays in it alone."""
        if not self.is_plain:
            cache = copy.deepcopy(self.cache)
            cache.batch_repeat_interleave(rows)
            return cache
        return self._cache_of(lambda states: states.expand(rows, -1, -1, -1))

    def shifted(self, padding: Sequence[int]) -> Any:
        """Return a cache of as many columns for rows that begin with padding; only if `is_plain`.

        Args:
            padding: for each row the columns before its first token, which hold anything. The
                last tokens of the prefix are left out of the row instead.
        """
        if not any(padding):
            return self.repeated(len(padding))
        columns = torch.arange(len(self)) - torch.tensor(padding)[:, None]
        columns = columns.clamp(min=0)
        return self._cache_of(
            lambda states: states[0][:, columns.to(states.device)].transpose(0, 1)
        )

    def _cache_of(self, rows_of: Any) -> Any:
        cache = DynamicCache()
        for layer in self.cache.layers:
            own = DynamicLayer()
            # Not by `lazy_initialization`, which copies two empty tensors to a GPU.
            own.dtype, own.device, own.is_initialized = layer.dtype, layer.device, True
            own.keys, own.values = rows_of(layer.keys), rows_of(layer.values)
            cache.layers.append(own)
        return cache


def common_beginning(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the tokens that all prompts begin with."""
    # In sorted order, the first and the last prompt share the shortest beginning.
    ordered = sorted(map(tuple, prompts))
    first, last = ordered[0], ordered[-1]
    pairs = zip(first, last, strict=False)
    length = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))
    return first[:length]


def encode_prefix(model: Any, input_ids: tuple[int, ...], device: torch.device) -> Prefix:
    """Run the prefix through the model once and return it with its keys and values."""
    ids = torch.tensor([input_ids], device=device)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    return Prefix(input_ids, cache)
