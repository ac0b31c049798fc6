"""Construction of the retention methods that a recipe selects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_kit.backbone.load import Backbone
from lora_kit.recipe.recipe import Recipe
from lora_kit.training.micro_batcher import MicroBatcher
from lora_kit.training.retention.early_stopping import RetentionEarlyStopping
from lora_kit.training.retention.ewc import EwcPenalty
from lora_kit.training.retention.kl import KlPenalty
from lora_kit.training.retention.texts import RetentionTexts

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class RetentionMethods:
    """Retention methods that act during training; `None` for each that the recipe leaves out."""

    kl: KlPenalty | None = None
    early_stopping: RetentionEarlyStopping | None = None
    ewc: EwcPenalty | None = None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        backbone: Backbone,
        model: PeftModel,
        texts: RetentionTexts,
        micro_batcher: MicroBatcher,
        max_tokens: int,
        record: Callable[[dict[str, float]], None],
    ) -> RetentionMethods:
        """Build the methods of a recipe on their texts.

        Args:
            recipe: the recipe, whose `retention` section selects the methods.
            backbone: the frozen model.
            model: the model with its adapter.
            texts: texts of the methods.
            micro_batcher: split of a step into forward passes.
            max_tokens: largest number of tokens of a forward pass that measures losses, padding
                included.
            record: function that logs a step's metrics.
        """
        spec, seed, pad = recipe.retention, recipe.seed, backbone.tokenizer.pad_token_id
        kl = early_stopping = ewc = None
        if spec.kl and texts.kl:
            rows, tokens = micro_batcher.rows, micro_batcher.tokens
            kl = KlPenalty(model, texts.kl.examples, spec.kl, seed, pad, rows, tokens)
        if spec.early_stopping and texts.early_stopping:
            examples = texts.early_stopping.examples
            early_stopping = RetentionEarlyStopping(
                model, backbone, examples, spec.early_stopping, record, max_tokens
            )
        if spec.ewc and texts.ewc:
            ewc = EwcPenalty(model, backbone, texts.ewc.examples, spec.ewc)
        return cls(kl, early_stopping, ewc)

    @property
    def callbacks(self) -> list[RetentionEarlyStopping | EwcPenalty]:
        """Trainer callbacks of the methods; the KL penalty is part of the training step instead."""
        return [one for one in (self.early_stopping, self.ewc) if one]
