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
from lora_kit.modeling.model_inputs import to_device
from lora_kit.recipe.mlm import MlmSpec
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.steps import StepInputs
from lora_kit.training.validation import shared_mean
from lora_kit.training.weighed_steps import WeighedStepTrainer

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


class MaskedTrainer(WeighedStepTrainer):
    """transformers' Trainer for a masked language model.

    The loss is the cross-entropy of the predicted tokens, divided by their number in the step over
    all processes.
    """

    def __init__(self, *args: Any, inputs: TrainingInputs, masker: TokenMasker, **kwargs: Any):
        """Create the trainer.

        Args:
            args: arguments of `WeighedStepTrainer`.
            inputs: model, data and recipe.
            masker: masking of the rows.
            kwargs: keyword arguments of `WeighedStepTrainer`.
        """
        super().__init__(*args, inputs=inputs, **kwargs)
        self._masker = masker
        self._head = inputs.model.get_output_embeddings()

    def for_step(self, example: Example, row: int) -> Example:
        """Return an example with the masks of the step."""
        return self._masker.masked(example, row, self.state.global_step)

    def weight_of(self, examples: Sequence[Example]) -> torch.Tensor:
        """Return the number of predicted tokens."""
        return torch.tensor(sum(example.supervised for example in examples))

    def padded(self, examples: Sequence[Example]) -> StepInputs:
        """Return the tensors of a forward pass, of `masked_batch`."""
        return masked_batch(examples, self._pad_token_id)

    def summed_loss(self, model: torch.nn.Module, inputs: StepInputs) -> torch.Tensor:
        """Return the summed losses of one forward pass's predicted tokens; scalar, float32.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: result of `masked_batch`.
        """
        return masked_nll(model, inputs, self._head).sum()
