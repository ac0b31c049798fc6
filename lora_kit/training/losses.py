"""Losses of examples outside of the steps: of held-out rows, of texts that stand for the base."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import cut
from lora_kit.data.tokenization import Example
from lora_kit.modeling.likelihood import pad_examples, supervised_nll, to_device
from lora_kit.modeling.modes import eval_mode
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.out_of_memory import lacks_memory


def batch_nll(
    model: torch.nn.Module, backbone: Backbone, batch: Sequence[Example], what: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`likelihood.supervised_nll` of one forward pass.

    Args:
        model: the backbone with its adapter.
        backbone: of the model.
        batch: the longest first.
        what: they are, for the error.

    Raises:
        TrainingError: if it does not fit into memory.
    """
    padded = pad_examples(batch, backbone.tokenizer.pad_token_id)
    try:
        return supervised_nll(model, to_device(padded, backbone.model.device))
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise TrainingError(
            f"{what} do not fit into memory: {len(batch)} of them, the longest of "
            f"{len(batch[0].input_ids)} tokens. Lower training.max_tokens_per_batch, "
            "training.micro_batch_size or data.max_length"
        ) from error


def nll_of_each(
    model: torch.nn.Module,
    backbone: Backbone,
    examples: Sequence[Example],
    max_tokens_per_batch: int,
    what: str,
) -> list[torch.Tensor]:
    """Negative log-likelihoods of each example's supervised tokens, in nats.

    Args:
        model: the backbone with its adapter.
        backbone: of the model.
        examples: in memory; in any order.
        max_tokens_per_batch: most tokens of a forward pass, padding included.
        what: they are, for the error.

    Returns:
        For each example, in their order, (supervised,) float32; its first token is not predicted.

    Raises:
        TrainingError: as `batch_nll`.
    """
    # Equal examples are told apart by where they stand.
    places = {id(example): number for number, example in enumerate(examples)}
    found = [torch.empty(0)] * len(examples)
    with eval_mode(model), torch.no_grad():
        for batch in cut(examples, len(examples), max_tokens_per_batch):
            nll, rows = batch_nll(model, backbone, batch, what)
            for row, example in enumerate(batch):
                found[places[id(example)]] = nll[rows == row]
    return found
