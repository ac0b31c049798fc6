"""The negative log-likelihood of supervised tokens: one definition for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from lora_kit.data.tokenization import IGNORED

if TYPE_CHECKING:
    from lora_kit.data.tokenization import Example


def pad_examples(
    examples: Sequence[Example], pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Pad on the right.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each (batch, length) int64.
    """
    length = max(len(example.input_ids) for example in examples)
    rows = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORED}
    batch = {
        name: torch.full((len(examples), length), filler, dtype=torch.int64)
        for name, filler in rows.items()
    }
    for row, example in enumerate(examples):
        used = len(example.input_ids)
        batch["input_ids"][row, :used] = torch.tensor(example.input_ids)
        batch["attention_mask"][row, :used] = 1
        batch["labels"][row, :used] = torch.tensor(example.labels)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def supervised_nll(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each supervised token, in nats.

    Logits are computed only at positions that predict a supervised token of some row: the output
    head is a fifth of a 135M model's work, and most positions of a prompt are never scored.

    Args:
        model: a causal language model whose forward takes `logits_to_keep`.
        batch: `input_ids`, `attention_mask` and `labels`, each (batch, length) int64.

    Returns:
        `nll` (supervised,) float32 and `rows` (supervised,) int64, the row of each token; in the
        order of rows and positions.
    """
    targets = batch["labels"][:, 1:]
    columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=columns,
        use_cache=False,
    ).logits
    kept = targets[:, columns]
    mask = kept != IGNORED
    nll = cross_entropy(logits[mask].float(), kept[mask], reduction="none")
    return nll, mask.nonzero()[:, 0]
