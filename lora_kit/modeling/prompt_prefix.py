"""Tokens that all prompts of a batch begin with, such as a system message: encoded once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from lora_kit.backbone.devices import input_device
from lora_kit.modeling.held_weights import inner_model

# Minimum tokens of a prefix; a pass of its own for fewer costs more than it saves.
MIN_TOKENS = 8


def encode_shared_prefix(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """Encode the tokens that all prompts begin with, at most up to the last token but one.

    Args:
        model: decoder with its adapter, if it has one.
        prompts: token ids, none of them empty.

    Returns:
        Number of tokens, and the keys and values of each row; 0 and `None` if there is nothing to
        share, or if the model needs the padding before the prefix. In half precision nothing is
        shared: attention adds up in another order, and the most likely tokens are often so close
        that its last digit decides (55 of 512 tokens differed in bfloat16, none in float32).
    """
    if inner_model(model).dtype != torch.float32:
        return 0, None
    # In sorted order, the first and the last prompt share the shortest prefix.
    ordered = sorted(map(tuple, prompts))
    first, last = ordered[0], ordered[-1]
    longest = min(map(len, prompts)) - 1
    pairs = zip(first[:longest], last[:longest], strict=False)
    length = next((n for n, (a, b) in enumerate(pairs) if a != b), max(longest, 0))
    if len(prompts) < 2 or length < MIN_TOKENS or not _takes_positions(model):
        return 0, None
    ids = torch.tensor([list(first[:length])], device=input_device(model))
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    # A sliding window counts the padding between the prefix and the rest.
    if type(cache) is not DynamicCache or {type(one) for one in cache.layers} != {DynamicLayer}:
        return 0, None
    cache.batch_repeat_interleave(len(prompts))
    return length, cache


def _takes_positions(model: Any) -> bool:
    """Return true for a model that is told positions, so that padding may be within a row."""
    parameters = inspect.signature(inner_model(model).forward).parameters
    return "position_ids" in parameters and "logits_to_keep" in parameters
