"""From a step's examples to the tensors of its forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from lora_kit.data.batches import cut
from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.modeling.likelihood import pack_examples, pad_examples


def of_a_step(features: list[dict[str, Any]], packing: bool) -> dict[str, Any]:
    """This process's share of a step: examples, their rows, and labels to count tokens by."""
    examples = [Example(tuple(f["input_ids"]), tuple(f["labels"])) for f in features]
    together = pack_examples if packing else partial(pad_examples, pad_token_id=0)
    return {
        "examples": examples,
        "rows": [feature["row"] for feature in features],
        "labels": together(examples)["labels"] if examples else torch.tensor([[IGNORED]]),
    }


def micro_batches(
    examples: Sequence[Example],
    rows: int,
    tokens: int | None,
    packing: bool,
    pad_token_id: int,
) -> list[dict[str, torch.Tensor]]:
    """Cut a step's examples into forward passes, the longest first: what does not fit, shows.

    Args:
        examples: of one step.
        rows: most examples of a forward pass.
        tokens: most tokens of one, padding included; a longer example has one to itself.
        packing: whether they are one row or one row each.
        pad_token_id: what short rows are filled up with.
    """
    groups = cut(examples, rows, tokens, packing)
    if packing:
        return [pack_examples(group) for group in groups]
    return [pad_examples(group, pad_token_id) for group in groups]
