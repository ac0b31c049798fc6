"""Detect attention across the examples of one packed row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lora_kit.backbone.attention import lengths_arguments
from lora_kit.backbone.blocks import find_blocks
from lora_kit.data.supervision import Example
from lora_kit.modeling.model_inputs import pack_examples, to_device
from lora_kit.modeling.modes import eval_mode

TOKENS = 16
# Names that transformers gives to the settings in which blocks of one class differ.
SETTINGS = (
    *("layer_type", "block_type", "attention_type", "is_sliding", "is_local_attention"),
    *("sliding_window", "use_rope"),
)


@contextmanager
def shortened(model: torch.nn.Module) -> Iterator[int]:
    """Leave out all blocks after the first of each kind; yield the number that remain.

    A model that will be sharded computes on the CPU here, in every process, with weights that are
    read from disk: three passes of 32 tokens through all 80 blocks of a 70B model read 140 GB and
    take minutes. Each kind of block separates packed examples, or does not, wherever it is.

    Args:
        model: causal language model, with or without an adapter.
    """
    name, blocks = find_blocks(model)
    kinds = [_kind(block) for block in blocks]
    count = max(kinds.index(kind) for kind in set(kinds)) + 1
    owner, _, attribute = name.rpartition(".")
    parent = model.get_submodule(owner)
    setattr(parent, attribute, blocks[:count])
    try:
        yield count
    finally:
        setattr(parent, attribute, blocks)


def _kind(block: torch.nn.Module) -> tuple[object, ...]:
    """Return the classes of a block's modules, and the settings in which two of a class differ."""
    return tuple(
        (type(module).__name__, *(str(getattr(module, one, None)) for one in SETTINGS))
        for module in block.modules()
    )


@torch.inference_mode()
def packed_difference(model: Any, examples: Sequence[Example]) -> float:
    """Return the largest difference between an example's logits alone and in a packed row.

    Packed examples are separated by positions that restart at 0, or by their lengths. Only a
    forward pass shows if a backbone's attention respects them.

    Args:
        model: causal language model.
        examples: examples, of which the first tokens of the first and the last are used.
    """
    first, second = (_beginning(examples[index]) for index in (0, -1))
    with eval_mode(model):
        packed, alone = _logits(model, [first, second]), _logits(model, [second])
    return float((packed[len(first.input_ids) :] - alone).abs().max())


@torch.inference_mode()
def logit_spacing(model: Any, examples: Sequence[Example]) -> float:
    """Return the spacing between adjacent numbers at the largest logit, in the coarsest dtype.

    Float32 logits are no more exact than the weights from which they are computed.

    Args:
        model: causal language model.
        examples: examples, of which the first tokens of the last are used.
    """
    largest = float(_logits(model, [_beginning(examples[-1])]).abs().max())
    dtypes = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    return max(torch.finfo(dtype).eps for dtype in dtypes) * largest


def _beginning(example: Example) -> Example:
    return Example(example.input_ids[:TOKENS], example.labels[:TOKENS])


def _logits(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Return the logits of examples packed as in a training, (tokens, vocabulary) float32."""
    batch = to_device(pack_examples(examples), next(model.parameters()).device)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    logits: torch.Tensor = model(
        **inputs, **lengths_arguments(model, batch), use_cache=False
    ).logits
    return logits[0].float()
