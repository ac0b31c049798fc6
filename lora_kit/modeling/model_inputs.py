"""Model inputs of examples: padded or packed, their supervised tokens, on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.attention import WITH_LENGTHS, attention_of
from lora_kit.backbone.encoder_decoder import is_encoder_decoder
from lora_kit.data.supervision import IGNORE_INDEX

if TYPE_CHECKING:
    from lora_kit.data.supervision import Example

# Name in a batch of the supervised tokens, their rows and their columns, (3, supervised) int64.
SUPERVISED = "supervised"


def pad_examples(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad examples on the left.

    Answers, which end their rows, are then aligned, and few columns need logits: with right
    padding, a batch of 24 docstrings took twice as long to score.

    Returns:
        `input_ids`, `attention_mask`, `position_ids` and `labels`, each (batch, length) int64.
    """
    length = max(len(example.input_ids) for example in examples)
    fillers = {
        "input_ids": pad_token_id,
        "attention_mask": 0,
        "position_ids": 0,
        "labels": IGNORE_INDEX,
    }
    batch = {
        name: torch.full((len(examples), length), filler, dtype=torch.int64)
        for name, filler in fillers.items()
    }
    for row, example in enumerate(examples):
        used = len(example.input_ids)
        batch["input_ids"][row, -used:] = torch.tensor(example.input_ids)
        batch["attention_mask"][row, -used:] = 1
        batch["position_ids"][row, -used:] = torch.arange(used)
        batch["labels"][row, -used:] = torch.tensor(example.labels)
    return batch


def pack_examples(examples: Sequence[Example]) -> dict[str, Any]:
    """Pack examples into one row, in which positions restart with each example.

    Without an attention mask, transformers separates the examples by their positions (sdpa and
    eager by a mask); `varlen` and flash attention by their lengths.

    Returns:
        `input_ids`, `position_ids` and `labels`, each (1, tokens) int64; `lengths`, a tuple of the
        tokens of each example.
    """
    ids = [token for example in examples for token in example.input_ids]
    labels = [label for example in examples for label in example.labels]
    positions = [place for example in examples for place in range(len(example.input_ids))]
    columns = {"input_ids": ids, "position_ids": positions, "labels": labels}
    packed: dict[str, Any] = {name: torch.tensor([values]) for name, values in columns.items()}
    return packed | {"lengths": tuple(len(example.input_ids) for example in examples)}


def collate_for(model: Any, examples: Sequence[Example], pad_token_id: int) -> dict[str, Any]:
    """Pack examples if the model's attention separates them by their lengths, or pad them.

    Virtual tokens come before a row, and so before the first example of a pack only; an encoder
    reads all of a row.
    """
    tuned = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    separable = not tuned and not is_encoder_decoder(model)
    if attention_of(model) in WITH_LENGTHS and separable:
        return pack_examples(examples)
    return pad_examples(examples, pad_token_id)


def supervised_positions(
    batch: Mapping[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the supervised tokens, and the row and column that each is predicted from.

    Args:
        batch: result of `pad_examples` or `pack_examples`, or of `to_device` with one of them.
    """
    if SUPERVISED in batch:
        targets, rows, columns = batch[SUPERVISED].unbind()
        return targets, rows, columns
    targets = batch["labels"][:, 1:]
    rows, columns = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
    return targets[rows, columns], rows, columns


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch on a device.

    To a GPU, pinned copies are sent without waiting for what runs on it. Supervised tokens are
    found before, as `supervised`, and replace the labels, on every device: finding them on a GPU
    waits for it.

    Args:
        batch: tensors by name, and anything else that a pass needs.
        device: device of the model.
    """
    if "labels" in batch:
        supervised = torch.stack(supervised_positions(batch))
        batch = {n: value for n, value in batch.items() if n != "labels"} | {SUPERVISED: supervised}
    return {
        name: send(value, device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def send(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device, to a GPU without waiting for what runs on it."""
    if value.device.type != "cpu" or device.type == "cpu":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)
