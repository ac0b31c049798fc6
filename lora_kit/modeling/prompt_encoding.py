"""Keys, values and next-token logits of prompts, with little padding between them.

Prompts are padded on the left to one width, as in transformers. Here prompts of similar lengths are
encoded together, without most of the padding, and what all begin with is encoded once. Every token
sees the same keys at the same distances of a vector register, so that its attention adds up the
same numbers in the same order. A generation of 37 prompts of 5 to 186 tokens computed 53% padding.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from lora_kit.modeling.growing_cache import GrowingLayer, give_room
from lora_kit.modeling.held_weights import inner_model
from lora_kit.modeling.prefix import Prefix

# Inputs of a step that have a row for each row of the batch, or none at all.
ROW_INPUTS = ("attention_mask", "position_ids", "token_type_ids")
# Columns that are computed together; a CPU reaches its matrix rate from 500 on.
COMPUTED_COLUMNS = {"cpu": 1024, "cuda": 16384}
# Tokens by which columns may shift without another order of sums: numbers in a vector register, or
# twice as many.
ALIGNMENT = 16


def encode_prompts(
    model: Any,
    input_ids: torch.Tensor,
    generation_config: Any,
    inputs: dict[str, Any],
    prefix: Prefix | None = None,
) -> CausalLMOutputWithPast:
    """Return the logits after each prompt, (rows, 1, vocabulary), and the cache with room.

    Args:
        model: transformers model.
        input_ids: (rows, tokens) int64, padded on the left.
        generation_config: configuration of the generation; its `max_length` bounds the cache.
        inputs: inputs that transformers prepared, with an empty cache.
        prefix: encoded tokens that all prompts begin with.
    """
    width = input_ids.shape[1]
    room, cache = generation_config.max_length - width, inputs["past_key_values"]
    parts, lengths = [(list(range(len(input_ids))), 0)], [width] * len(input_ids)
    if _is_divisible(model, cache, inputs):
        # Without padding, transformers gives no mask.
        if inputs.get("attention_mask") is not None:
            lengths = inputs["attention_mask"].sum(dim=1).tolist()
        parts = list(_parts(lengths, width, len(prefix or ()), input_ids.device.type))
    else:
        prefix = None
    if len(parts) == 1 and prefix is None:
        outputs: CausalLMOutputWithPast = model._prefill(input_ids, generation_config, inputs)
        give_room(cache, room)
        return outputs
    empty, logits = copy.deepcopy(cache), None
    for rows, start in parts:
        at = torch.tensor(rows, device=input_ids.device)
        own = {
            name: value[at, start:] if len(value) > 1 else value[:, start:]
            for name in ROW_INPUTS
            if (value := inputs.get(name)) is not None
        }
        padding = [width - start - lengths[row] for row in rows]
        part = copy.deepcopy(empty) if prefix is None else prefix.shifted(padding)
        outputs = model._prefill(
            input_ids[at, start:], generation_config, inputs | own | {"past_key_values": part}
        )
        if logits is None:
            _make_room(cache, part, len(input_ids), width, room)
            logits = outputs.logits.new_empty((len(input_ids), *outputs.logits[0, -1:].shape))
        logits[at] = outputs.logits[:, -1:]
        _place(cache, part, at, start)
    return CausalLMOutputWithPast(logits=logits, past_key_values=cache)


def takes_positions(model: Any) -> bool:
    """Return true for a model that is told positions, so that padding does not shift them."""
    parameters = inspect.signature(inner_model(model).forward).parameters
    return "position_ids" in parameters and "logits_to_keep" in parameters


def _is_divisible(model: Any, cache: Any, inputs: dict[str, Any]) -> bool:
    """Return true if the rows of a batch can be encoded in several passes.

    A sliding window counts the padding, and recurrent layers have no keys to put side by side.
    """
    mask = inputs.get("attention_mask")
    return (
        type(cache) is DynamicCache
        and {type(layer) for layer in cache.layers} == {DynamicLayer}
        and not any(layer.is_initialized for layer in cache.layers)
        and (mask is None or mask.dim() == 2)
        and takes_positions(model)
    )


def _parts(
    lengths: Sequence[int], width: int, skipped: int, device_type: str
) -> Iterator[tuple[list[int], int]]:
    """Yield rows that are encoded together, longest first, and the column that they begin at.

    Args:
        lengths: tokens of each row.
        width: columns of all rows.
        skipped: tokens of the prefix, which are not computed.
        device_type: `cpu` or `cuda`.
    """
    budget = COMPUTED_COLUMNS.get(device_type, COMPUTED_COLUMNS["cpu"])
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        start = (width - lengths[order[0]]) // ALIGNMENT * ALIGNMENT
        rows = max(budget // (width - start - skipped), 1)
        yield order[:rows], start
        order = order[rows:]


def _make_room(cache: Any, part: Any, rows: int, width: int, room: int) -> None:
    """Give the layers of a cache zeros for rows of some width, and room for further tokens.

    Args:
        cache: empty cache of all rows.
        part: cache of some rows, for heads, sizes, dtypes and devices.
        rows: number of all rows.
        width: columns of all rows.
        room: tokens that can follow.
    """
    for number, layer in enumerate(part.layers):
        # A layer that uses the keys of another one has none.
        if layer.is_initialized:
            cache.layers[number] = GrowingLayer.zeros(layer.keys, layer.values, rows, width, room)


def _place(cache: Any, part: Any, rows: torch.Tensor, start: int) -> None:
    """Move the keys and values of some rows to their place among all rows.

    Args:
        cache: cache of all rows.
        part: cache of these rows, which is emptied.
        rows: numbers of these rows, int64.
        start: first column of the part.
    """
    for whole, layer in zip(cache.layers, part.layers, strict=True):
        if layer.is_initialized:
            own = rows.to(layer.keys.device)
            whole.keys[own, :, start:] = layer.keys
            whole.values[own, :, start:] = layer.values
            layer.reset()
