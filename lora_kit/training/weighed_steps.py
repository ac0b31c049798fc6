"""Training steps whose examples are changed for the step, and whose losses have weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from lora_kit.data.batches import split_micro_batches
from lora_kit.data.supervision import Example
from lora_kit.modeling.model_inputs import send
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.steps import StepInputs, StepTrainer


class WeighedStepTrainer(StepTrainer, ABC):
    """Trainer of examples that are changed for each step, and whose losses have weights.

    The divisor of a step's summed losses is the summed weight of its examples over all processes.
    """

    def __init__(self, *args: Any, inputs: TrainingInputs, **kwargs: Any):
        """Create the trainer.

        Args:
            args: arguments of `StepTrainer`.
            inputs: model, data and recipe.
            kwargs: keyword arguments of `StepTrainer`.
        """
        super().__init__(*args, inputs=inputs, **kwargs)
        if self.args.gradient_checkpointing:
            # transformers#42489: transformers does not do this for PEFT models.
            inputs.model.enable_input_require_grads()

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: StepInputs,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run forward and backward passes over this process's share of an optimizer step.

        Args:
            model: the model, wrapped by Accelerate.
            inputs: this process's share, of `collate_share`.
            num_items_in_batch: ignored; the divisor is that of `weight_of`.

        Returns:
            Summed losses of the share, divided by the summed weights of the step over all processes
            and multiplied by the number of processes; scalar, float32.
        """
        del num_items_in_batch
        examples = [
            self.for_step(example, row)
            for row, example in zip(inputs["rows"], inputs["examples"], strict=True)
        ]
        weight = send(self.weight_of(examples), self.args.device)
        total = self.accelerator.reduce(weight, reduction="sum")
        return super().training_step(model, {**inputs, "examples": examples}, total)

    @abstractmethod
    def for_step(self, example: Example, row: int) -> Example:
        """Return an example as the current step trains on it.

        Args:
            example: example of the data set.
            row: index of the example in its data set.
        """
        ...

    @abstractmethod
    def weight_of(self, examples: Sequence[Example]) -> torch.Tensor:
        """Return the summed weight of some examples of a step; scalar."""
        ...

    @abstractmethod
    def padded(self, examples: Sequence[Example]) -> StepInputs:
        """Return the tensors of a forward pass, as `summed_loss` takes them."""
        ...

    def _tensors(self, examples: Sequence[Example]) -> list[StepInputs]:
        groups = split_micro_batches(examples, self.micro_batcher.rows, self.micro_batcher.tokens)
        return [self.padded(group) for group in groups]
