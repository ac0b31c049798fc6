"""Losses of examples outside the training steps: held-out rows and retention texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import split_micro_batches
from lora_kit.data.supervision import Example
from lora_kit.modeling.likelihood import supervised_nll
from lora_kit.modeling.model_inputs import collate_for, to_device
from lora_kit.modeling.modes import eval_mode
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.out_of_memory import is_out_of_memory_error
from lora_kit.training.sharded import compute_device


def batch_nll(
    model: torch.nn.Module, backbone: Backbone, batch: Sequence[Example], description: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `supervised_nll` of one forward pass.

    Args:
        model: the backbone with its adapter.
        backbone: backbone of the model.
        batch: examples of the pass, longest first.
        description: plural name of the examples, for the error message.

    Returns:
        Negative log-likelihood of each supervised token in nats, (supervised,) float32, and the
        example of each, (supervised,) int64.

    Raises:
        TrainingError: if the pass does not fit into memory.
    """
    inputs = collate_for(model, batch, backbone.tokenizer.pad_token_id)
    try:
        return supervised_nll(model, to_device(inputs, compute_device(model)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory_error(error):
            raise
        raise TrainingError(
            f"training.max_tokens_per_batch: {description} do not fit into memory (got "
            f"{len(batch)} in a forward pass, the longest of {len(batch[0].input_ids)} tokens). "
            "Fix: set or lower it, training.micro_batch_size or data.max_length"
        ) from error


def nll_per_example(
    model: torch.nn.Module,
    backbone: Backbone,
    examples: Sequence[Example],
    max_tokens_per_batch: int,
    description: str,
) -> list[torch.Tensor]:
    """Return the negative log-likelihoods of each example's supervised tokens, in nats.

    Args:
        model: the backbone with its adapter.
        backbone: backbone of the model.
        examples: examples in memory, in any order.
        max_tokens_per_batch: maximum tokens of a forward pass, padding included.
        description: plural name of the examples, for the error message.

    Returns:
        One tensor per example, in their order, (supervised,) float32 on the CPU; an example's first
        token is not predicted.

    Raises:
        TrainingError: if a forward pass does not fit into memory.
    """
    # By identity, since examples may be equal.
    positions = {id(example): number for number, example in enumerate(examples)}
    losses = [torch.empty(0)] * len(examples)
    with eval_mode(model), torch.no_grad():
        for batch in split_micro_batches(examples, len(examples), max_tokens_per_batch):
            nll, _ = batch_nll(model, backbone, batch, description)
            # In the order of rows; the first token of an example is not predicted.
            sizes = [example.supervised for example in batch]
            for example, part in zip(batch, torch.split(nll.cpu(), sizes), strict=True):
                losses[positions[id(example)]] = part
    return losses
