"""Detect trained parameters that get no gradient in some steps."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import torch

from lora_kit.backbone.encoder_decoder import Seq2SeqBatch, is_encoder_decoder
from lora_kit.modeling.modes import eval_mode
from lora_kit.training.inputs import TrainingInputs

# A module for each expert, which computes only in steps with a token for it. Fused experts share
# one parameter, which gets a gradient in every step.
ONE_EXPERT = re.compile(r"\bexperts\.\d+\.")
# Fields of a configuration by which random layers are skipped in training.
LAYER_DROP = "layerdrop"


def may_be_unused(inputs: TrainingInputs) -> bool:
    """Return true if trained parameters may get no gradient in a training step.

    Data parallelism then has to search the graph of each forward pass for them; without the search,
    it waits for their gradients and fails in the next step. One short example shows parameters that
    no text uses, such as those of a vision tower.

    Args:
        inputs: recipe, model and data; the model is on its device, and not sharded.
    """
    model: Any = inputs.model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if any(ONE_EXPERT.search(name) for name in trained):
        return True
    config = inputs.backbone.model.config.to_dict()
    if any(value for field, value in config.items() if field.endswith(LAYER_DROP)):
        return True
    dtype = getattr(torch, str(inputs.backbone.spec.dtype))
    half = dtype is not torch.float32
    device = inputs.backbone.model.device
    with eval_mode(model), torch.enable_grad():
        with torch.autocast(device.type, dtype) if half else nullcontext():
            # Logits, or hidden states of a model without an output head.
            output: torch.Tensor = model(**_short_example(inputs, device))[0]
        found = torch.autograd.grad(output.float().sum(), list(trained.values()), allow_unused=True)
    return any(gradient is None for gradient in found)


def _short_example(inputs: TrainingInputs, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the model inputs of two tokens; of a training example for an encoder-decoder."""
    model = inputs.backbone.model
    ids = torch.zeros((1, 2), dtype=torch.int64, device=device)
    if is_encoder_decoder(model):
        # The end of the prompt divides it from the answer.
        ids = torch.tensor([inputs.data.examples[0].input_ids], device=device)
        return Seq2SeqBatch.of(model, ids, torch.ones_like(ids)).inputs
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
