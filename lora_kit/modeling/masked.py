"""Likelihood of masked tokens, each predicted from the tokens on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_kit.backbone.heads import pad_right
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.modeling.likelihood import head_at, token_nll
from lora_kit.modeling.model_inputs import SUPERVISED


def masked_batch(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a forward pass.

    Args:
        examples: masked examples; a label is the token that its own position predicts.
        pad_token_id: token that fills shorter rows.

    Returns:
        `input_ids` and `attention_mask`, (batch, length) int64, and `supervised`, the predicted
        tokens with their rows and columns, (3, predicted) int64.
    """
    found = [
        (label, row, column)
        for row, example in enumerate(examples)
        for column, label in enumerate(example.labels)
        if label != IGNORE_INDEX
    ]
    predicted = torch.tensor(found, dtype=torch.int64).reshape(-1, 3).T
    batch = pad_right([example.input_ids for example in examples], pad_token_id)
    return {**batch, SUPERVISED: predicted}


def masked_nll(
    model: Any, batch: Mapping[str, torch.Tensor], head: torch.nn.Module | None = None
) -> torch.Tensor:
    """Return the negative log-likelihood of each predicted token, in nats.

    Args:
        model: masked language model.
        batch: result of `masked_batch`, on the model's device.
        head: the model's output layer; looked up in the model by default, if it is not wrapped.

    Returns:
        (predicted,) float32, in the order of rows and columns.
    """
    targets, rows, columns = batch[SUPERVISED].unbind()
    return token_nll(masked_logits(model, batch, rows, columns, head), targets)


def masked_logits(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    rows: torch.Tensor,
    columns: torch.Tensor,
    head: torch.nn.Module | None = None,
) -> torch.Tensor:
    """Return the logits of some positions, each of its own token; the others are not computed.

    Args:
        model: masked language model.
        batch: `input_ids` and `attention_mask`, (batch, length) int64.
        rows: (positions,) int64.
        columns: (positions,) int64.
        head: the model's output layer; looked up in the model by default, if it is not wrapped.

    Returns:
        (positions, vocabulary) in the model's dtype.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with head_at(head or model.get_output_embeddings(), rows, columns):
        logits: torch.Tensor = model(**inputs).logits
    if logits.shape[:2] != (1, len(rows)):
        # A model that does not call its output layer as a module.
        return logits[rows, columns]
    return logits[0]
