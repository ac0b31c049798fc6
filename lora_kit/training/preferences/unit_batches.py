"""Tensors for TRL's losses from the units of a step.

The units are tokenized by this package: TRL would tokenize the rows again, and differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.units import Unit

PreferenceBatch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class UnitPass:
    """Forward pass of one process over units of a step.

    Attributes:
        units: units of the pass, at least one.
        counted: number of units that count: all, or 0 if the process has none and the first stands
            in, since gradients are exchanged in a backward pass.
        others: for KTO, units whose answers are paired with the prompts of `units`.
    """

    units: Sequence[Unit]
    counted: int
    others: Sequence[Unit] = ()


def collate_step(features: Sequence[dict[str, int]], units: Sequence[Unit]) -> dict[str, Any]:
    """Collate a step: its `units`, and as `rows` their indices in the data set."""
    rows = [feature["row"] for feature in features]
    return {"units": [units[row] for row in rows], "rows": rows}


def split_into_passes(units: Sequence[Unit], size: int) -> list[list[Unit]]:
    """Split a step into forward passes of at most `size` units, longest units first.

    With `size` above 2 no pass of several holds a single unit, since KTO pairs each prompt with
    another unit's answer.
    """
    ordered = sorted(units, key=lambda unit: -unit.length)
    groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    if len(groups) > 1 and len(groups[-1]) == 1 and size > 2:
        groups[-1].insert(0, groups[-2].pop())
    return groups


def dpo_batch(units: Sequence[Unit], pad_token_id: int) -> PreferenceBatch:
    """Build the batch of DPO: all chosen answers, then all rejected ones.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask`, each (2 * pairs, length) int64.
    """
    sides = zip(*(unit.examples for unit in units), strict=True)
    return completion_batch([example for side in sides for example in side], pad_token_id)


def reward_batch(units: Sequence[Unit], pad_token_id: int) -> PreferenceBatch:
    """Build the batch of a reward model: all chosen answers, then all rejected ones.

    Returns:
        `input_ids` and `attention_mask`, each (2 * pairs, length) int64.
    """
    batch = dpo_batch(units, pad_token_id)
    del batch["completion_mask"]
    return batch


def orpo_batch(units: Sequence[Unit], pad_token_id: int) -> PreferenceBatch:
    """Build the batch of ORPO: separate tensors of chosen and rejected answers.

    Returns:
        `input_ids`, `attention_mask` and `labels` of each side, prefixed `chosen_` and `rejected_`,
        each (pairs, length) int64.
    """
    batch: PreferenceBatch = {}
    for side, examples in zip(
        ("chosen", "rejected"), zip(*(unit.examples for unit in units), strict=True), strict=True
    ):
        one = completion_batch(examples, pad_token_id)
        mask = one.pop("completion_mask")
        one["labels"] = one["input_ids"].masked_fill(mask == 0, IGNORE_INDEX)
        batch |= {f"{side}_{name}": tensor for name, tensor in one.items()}
    return batch


def kto_batch(
    units: Sequence[Unit], pad_token_id: int, max_length: int, others: Sequence[Unit] = ()
) -> PreferenceBatch:
    """Build the batch of KTO: rated answers, and each prompt with another unit's answer.

    Args:
        units: units of a forward pass.
        pad_token_id: id that pads short rows.
        max_length: tokens to which a prompt with another unit's answer is truncated.
        others: units whose answers are paired with the prompts; by default the preceding unit of
            each, and the last for the first.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask`, the same for the mismatched answers
        prefixed `KL_`, each (answers, length) int64, and `label`, (answers,) bool.
    """
    examples = [unit.examples[0] for unit in units]
    answers = [unit.examples[0] for unit in others or (units[-1], *units[:-1])]
    mismatched = [
        _with_answer_of(one, answer, max_length)
        for one, answer in zip(examples, answers, strict=True)
    ]
    divergence = completion_batch(mismatched, pad_token_id)
    return {
        **completion_batch(examples, pad_token_id),
        **{f"KL_{name}": tensor for name, tensor in divergence.items()},
        "label": torch.tensor([bool(unit.row.desirable) for unit in units]),
    }


def completion_batch(examples: Sequence[Example], pad_token_id: int) -> PreferenceBatch:
    """Pad examples on the right, as TRL's losses expect.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask`, each (examples, length) int64.
    """
    length = max(len(example.input_ids) for example in examples)
    fillers = {"input_ids": pad_token_id, "attention_mask": 0, "completion_mask": 0}
    batch = {
        name: torch.full((len(examples), length), filler, dtype=torch.int64)
        for name, filler in fillers.items()
    }
    for row, example in enumerate(examples):
        used = len(example.input_ids)
        batch["input_ids"][row, :used] = torch.tensor(example.input_ids)
        batch["attention_mask"][row, :used] = 1
        learned = torch.tensor(example.labels) != IGNORE_INDEX
        batch["completion_mask"][row, :used] = learned.long()
    return batch


def prompt_tokens(example: Example) -> tuple[int, ...]:
    """Return the token ids before the answer."""
    return example.input_ids[: _answer_start(example)]


def _with_answer_of(one: Example, other: Example, max_length: int) -> Example:
    """Return an example's prompt with another's answer, truncated to `max_length` tokens."""
    prompt, answer = prompt_tokens(one), other.input_ids[_answer_start(other) :]
    answer = answer[: max_length - len(prompt)]
    return Example(prompt + answer, (IGNORE_INDEX,) * len(prompt) + answer)


def _answer_start(example: Example) -> int:
    """Return the index of the answer's first token."""
    return next(n for n, label in enumerate(example.labels) if label != IGNORE_INDEX)
