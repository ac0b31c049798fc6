"""Inputs of one training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from lora_kit.backbone.load import Backbone
from lora_kit.data.prepared import PreparedData
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.launch import Launch, current_launch
from lora_kit.runtime.processes import process_state
from lora_kit.training.micro_batcher import MicroBatcher
from lora_kit.training.retention.texts import RetentionTexts
from lora_kit.training.step_sizes import optimizer_steps
from lora_kit.training.target_texts import TargetTexts

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, eq=False)
class TrainingInputs:
    """Inputs of one training, as the stages before it left them.

    Attributes:
        recipe: the recipe.
        backbone: frozen base model and its tokenizer.
        model: the backbone with the adapter to train.
        data: training examples, tokenized.
        held_out: validation examples, tokenized, if there are any.
        run: run directory, for checkpoints, metrics and the adapter.
        texts: texts of the recipe's retention methods.
        launch: launch of the training, by default that of this process.
        row_weights: weight in the loss of a classification's examples by their index; 1 for the
            others.
        target: texts of `training.domain_alignment`, if the recipe has it.
    """

    recipe: Recipe
    backbone: Backbone
    model: PeftModel
    data: PreparedData
    held_out: PreparedData | None
    run: RunDirectory
    texts: RetentionTexts = field(default_factory=RetentionTexts)
    launch: Launch = field(default_factory=current_launch)
    row_weights: Mapping[int, float] = field(default_factory=dict)
    target: TargetTexts | None = None

    @cached_property
    def steps(self) -> int:
        """Number of optimizer steps over all epochs."""
        return optimizer_steps(self.data.size, self.recipe.training)

    @cached_property
    def micro_batcher(self) -> MicroBatcher:
        """Division of this process's share of a step into forward passes.

        Raises:
            TrainingError: if there are more processes than examples in a step.
        """
        state = process_state()
        return MicroBatcher.of(
            self.recipe, state.num_processes, state.device, self.backbone.packing_attention
        )

    @cached_property
    def max_tokens_per_pass(self) -> int:
        """Maximum tokens of a forward pass, padding included."""
        return self.micro_batcher.largest_pass_tokens(self.data.lengths)
