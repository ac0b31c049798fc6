"""From a step's units to the tensors that TRL's losses take.

The tokens are ours: TRL would tokenize rows itself, once more and in another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.data.units import Unit

Batch = dict[str, torch.Tensor]


def of_a_step(features: Sequence[dict[str, int]], units: Sequence[Unit]) -> dict[str, Any]:
    """A step: its units, and which of all they are."""
    rows = [feature["row"] for feature in features]
    return {"units": [units[row] for row in rows], "rows": rows}


def groups_of(units: Sequence[Unit], size: int) -> list[list[Unit]]:
    """Cut a step into forward passes of at most `size` units, the longest first.

    None has one unit alone if another has more than two: kto takes other answers beside each.
    """
    ordered = sorted(units, key=lambda unit: -unit.length)
    groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    if len(groups) > 1 and len(groups[-1]) == 1 and size > 2:
        groups[-1].insert(0, groups[-2].pop())
    return groups


def pairs(units: Sequence[Unit], pad_token_id: int) -> Batch:
    """What DPO takes: all chosen, then all rejected.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask`, each (2 * pairs, length) int64.
    """
    sides = zip(*(unit.examples for unit in units), strict=True)
    return padded([example for side in sides for example in side], pad_token_id)


def both_sides(units: Sequence[Unit], pad_token_id: int) -> Batch:
    """What a reward model takes: all chosen, then all rejected.

    Returns:
        `input_ids` and `attention_mask`, each (2 * pairs, length) int64.
    """
    batch = pairs(units, pad_token_id)
    del batch["completion_mask"]
    return batch


def odds(units: Sequence[Unit], pad_token_id: int) -> Batch:
    """What ORPO takes: chosen and rejected beside one another.

    Returns:
        `input_ids`, `attention_mask` and `labels` of each side, (pairs, length) int64.
    """
    batch: Batch = {}
    for side, examples in zip(
        ("chosen", "rejected"), zip(*(unit.examples for unit in units), strict=True), strict=True
    ):
        one = padded(examples, pad_token_id)
        mask = one.pop("completion_mask")
        one["labels"] = one["input_ids"].masked_fill(mask == 0, IGNORED)
        batch |= {f"{side}_{name}": tensor for name, tensor in one.items()}
    return batch


def judged(
    units: Sequence[Unit], pad_token_id: int, longest: int, beside: Unit | None = None
) -> Batch:
    """What KTO takes: answers with labels, and each prompt with the answer to the one before it.

    Args:
        units: of a forward pass.
        pad_token_id: what short rows are filled up with.
        longest: tokens of a prompt with another's answer, whose end is cut off.
        beside: whose answer the first prompt is given, by default that of the last.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask`, the same with `KL_` before the name,
        each (answers, length) int64, and `label` (answers,) bool.
    """
    examples = [unit.examples[0] for unit in units]
    first = beside.examples[0] if beside else examples[-1]
    others = [first, *examples[:-1]]
    mismatched = [
        _answered_by(one, other, longest) for one, other in zip(examples, others, strict=True)
    ]
    divergence = padded(mismatched, pad_token_id)
    return {
        **padded(examples, pad_token_id),
        **{f"KL_{name}": tensor for name, tensor in divergence.items()},
        "label": torch.tensor([bool(unit.row.desirable) for unit in units]),
    }


def padded(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Pad on the right, as TRL's losses expect.

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
        learned = torch.tensor(example.labels) != IGNORED
        batch["completion_mask"][row, :used] = learned.long()
    return batch


def prompt_of(example: Example) -> tuple[int, ...]:
    """The tokens before the answer."""
    return example.input_ids[: _answer(example)]


def _answered_by(one: Example, other: Example, longest: int) -> Example:
    """One example's prompt with another's answer, as much of it as there is room for."""
    prompt, answer = prompt_of(one), other.input_ids[_answer(other) :]
    answer = answer[: longest - len(prompt)]
    return Example(prompt + answer, (IGNORED,) * len(prompt) + answer)


def _answer(example: Example) -> int:
    """Where it begins."""
    return next(n for n, label in enumerate(example.labels) if label != IGNORED)
