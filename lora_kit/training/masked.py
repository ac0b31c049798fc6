"""Training of a masked language model: other masks in each step, fixed ones for held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import split_micro_batches
from lora_kit.data.masking import TokenMasker
from lora_kit.data.prepared import PreparedData
from lora_kit.data.supervision import Example
from lora_kit.modeling.masked import masked_batch, masked_nll
from lora_kit.modeling.model_inputs import send, to_device
from lora_kit.recipe.mlm import MlmSpec
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.steps import StepInputs, StepTrainer
from lora_kit.training.validation import shared_mean

if TYPE_CHECKING:
    from peft import PeftModel


def masker_of(inputs: TrainingInputs) -> TokenMasker | None:
    """Return the masking of a recipe; `None` if it trains no masked language model."""
    recipe, head = inputs.recipe, inputs.backbone.head
    if head is None or head.kind != "mlm":
        return None
    return TokenMasker.of(inputs.backbone.tokenizer, recipe.mlm or MlmSpec(), recipe.seed)


def masked_validation_loss(
    model: PeftModel,
    backbone: Backbone,
    data: PreparedData | None,
    max_tokens_per_batch: int,
    masker: TokenMasker,
) -> float | None:
    """Return the mean loss of held-out rows in nats per predicted token; `None` without rows.

    The forward passes are shared between the processes.

    Args:
        model: the backbone with its adapter.
        backbone: backbone of the model.
        data: held-out rows, without masks.
        max_tokens_per_batch: maximum tokens of a forward pass, padding included.
        masker: masking of the rows.
    """
    if data is None or not data.examples:
        return None
    pad_token_id, device = backbone.tokenizer.pad_token_id, backbone.model.device

    def sums_of(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        nll = masked_nll(model, to_device(masked_batch(batch, pad_token_id), device))
        return nll.double().sum(), torch.tensor(nll.numel())

    examples = masker.held_out(data.examples)
    batches = split_micro_batches(examples, len(examples), max_tokens_per_batch)
    return shared_mean(model, batches, sums_of)


class MaskedTrainer(StepTrainer):
    """transformers' Trainer for a masked language model.

    The loss is the cross-entropy of the predicted tokens, divided by their number in the step over
    all processes.
    """

    def __init__(self, *args: Any, inputs: TrainingInputs, masker: TokenMasker, **kwargs: Any):
        """Create the trainer.

        Args:
            args: arguments of `StepTrainer`.
            inputs: model, data and recipe.
            masker: masking of the rows.
            kwargs: keyword arguments of `StepTrainer`.
        """
        super().__init__(*args, inputs=inputs, **kwargs)
        self._masker = masker
        self._head = inputs.model.get_output_embeddings()
        if self.args.gradient_checkpointing:
            # transformers#42489: transformers does not do this for PEFT models.
            inputs.model.enable_input_require_grads()

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: StepInputs,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mask this process's share of a step, and run its forward and backward passes.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: this process's share, of `collate_share`, without masks.
            num_items_in_batch: ignored; the loss is divided by the number of predicted tokens.

        Returns:
            Summed losses of the share's predicted tokens, divided by their number in the step over
            all processes and multiplied by the number of processes; scalar, float32.
        """
        del num_items_in_batch
        step = self.state.global_step
        examples = [
            self._masker.masked(example, row, step)
            for row, example in zip(inputs["rows"], inputs["examples"], strict=True)
        ]
        predicted = torch.tensor(sum(example.supervised for example in examples))
        total = self.accelerator.reduce(send(predicted, self.args.device), reduction="sum")
        return super().training_step(model, {**inputs, "examples": examples}, total)

    def _tensors(self, examples: Sequence[Example]) -> list[StepInputs]:
        groups = split_micro_batches(examples, self.micro_batcher.rows, self.micro_batcher.tokens)
        return [masked_batch(group, self._pad_token_id) for group in groups]

    def summed_loss(self, model: torch.nn.Module, inputs: StepInputs) -> torch.Tensor:
        """Return the summed losses of one forward pass's predicted tokens; scalar, float32.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: result of `masked_batch`.
        """
        return masked_nll(model, inputs, self._head).sum()
