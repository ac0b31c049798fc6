"""The negative log-likelihood of supervised tokens: one definition for training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from lora_kit.data.tokenization import IGNORED

if TYPE_CHECKING:
    from lora_kit.data.tokenization import Example


def pad_examples(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad on the left.

    So the answers, which end their rows, stand under one another, and the logits of few columns
    are enough: with right padding, a batch of 24 docstrings took twice as long to score.

    Returns:
        `input_ids`, `attention_mask`, `position_ids` and `labels`, each (batch, length) int64.
    """
    length = max(len(example.input_ids) for example in examples)
    fillers = {"input_ids": pad_token_id, "attention_mask": 0, "position_ids": 0, "labels": IGNORED}
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


def supervised_nll(
    model: torch.nn.Module, batch: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each supervised token, in nats.

    Args:
        model: a causal language model whose forward takes `logits_to_keep`.
        batch: of `pad_examples`, on the model's device.

    Returns:
        `nll` (supervised,) float32 and `rows` (supervised,) int64, the row of each token; in the
        order of rows and positions.
    """
    nll, _, rows = supervised_tokens(model, batch)
    return nll, rows


def supervised_tokens(
    model: Any, batch: Mapping[str, torch.Tensor], cache: Any = None, gathered: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`supervised_nll`, and whether each supervised token was the most likely one.

    Args:
        model: a causal language model whose forward takes `logits_to_keep`.
        batch: of `pad_examples`, on the model's device.
        cache: keys and values of what comes before every row; the attention mask covers it.
        gathered: see `logits_at`.

    Returns:
        `nll` (supervised,) float32, `greedy` (supervised,) bool and `rows` (supervised,) int64.
    """
    targets = batch["labels"][:, 1:]
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "position_ids": batch["position_ids"],
        "past_key_values": cache,
        "use_cache": cache is not None,
    }
    logits = logits_at(model, inputs, rows, columns, gathered).float()
    wanted = targets[rows, columns]
    nll = cross_entropy(logits, wanted, reduction="none")
    return nll, logits.detach().argmax(dim=-1) == wanted, rows


def logits_at(
    model: Any,
    inputs: Mapping[str, Any],
    rows: torch.Tensor,
    columns: torch.Tensor,
    gathered: bool,
) -> torch.Tensor:
    """Next-token logits at some places of a batch, and not at the others.

    The output head is a fifth of a 135M model's work, and most positions of a prompt are never
    scored. By the models' own interface only whole columns can be left out. `gathered` takes the
    hidden states of the places and applies the head to them: the least work, and wrong for models
    that do more to their logits, which the caller has to have found out.

    Args:
        model: a causal language model, with or without adapter.
        inputs: of its forward.
        rows: (places,) int64.
        columns: (places,) int64.
        gathered: whether the head is applied here.

    Returns:
        (places, vocabulary), in the model's dtype.
    """
    if gathered:
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden = causal.base_model(**inputs).last_hidden_state
        found: torch.Tensor = causal.get_output_embeddings()(hidden[rows, columns])
        return found
    kept = torch.unique(columns)
    logits: torch.Tensor = model(**inputs, logits_to_keep=kept).logits
    return logits[rows, torch.searchsorted(kept, columns.contiguous())]


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}
