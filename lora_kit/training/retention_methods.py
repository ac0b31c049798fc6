"""Construction of the retention methods that a recipe selects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lora_kit.recipe.retention import EntropyWeightingSpec
from lora_kit.training.inputs import TrainingInputs
from lora_kit.training.retention.early_stopping import RetentionEarlyStopping
from lora_kit.training.retention.ewc import EwcPenalty
from lora_kit.training.retention.kl import KlPenalty, NonTargetKl


@dataclass(frozen=True)
class RetentionMethods:
    """Retention methods that act during training; `None` for each that the recipe leaves out."""

    kl: KlPenalty | None = None
    early_stopping: RetentionEarlyStopping | None = None
    ewc: EwcPenalty | None = None
    non_target_kl: NonTargetKl | None = None
    entropy_weighting: EntropyWeightingSpec | None = None

    @classmethod
    def of(
        cls, inputs: TrainingInputs, record: Callable[[dict[str, float]], None]
    ) -> RetentionMethods:
        """Build the methods of a recipe on their texts.

        Args:
            inputs: recipe, model and texts.
            record: function that logs a step's metrics.
        """
        backbone, model, texts = inputs.backbone, inputs.model, inputs.texts
        spec, pad = inputs.recipe.retention, backbone.tokenizer.pad_token_id
        kl = early_stopping = ewc = None
        if spec.kl and texts.kl:
            rows, tokens = inputs.micro_batcher.rows, inputs.micro_batcher.tokens
            seed = inputs.recipe.seed
            kl = KlPenalty(model, texts.kl.examples, spec.kl, seed, pad, rows, tokens)
        if spec.early_stopping and texts.early_stopping:
            examples = texts.early_stopping.examples
            early_stopping = RetentionEarlyStopping(
                model, backbone, examples, spec.early_stopping, record, inputs.max_tokens_per_pass
            )
        if spec.ewc and texts.ewc:
            ewc = EwcPenalty(model, backbone, texts.ewc.examples, spec.ewc)
        non_target_kl = NonTargetKl(model, spec.non_target_kl) if spec.non_target_kl else None
        return cls(kl, early_stopping, ewc, non_target_kl, spec.entropy_weighting)

    @property
    def callbacks(self) -> list[RetentionEarlyStopping | EwcPenalty]:
        """Trainer callbacks of the methods; the others are part of the training step."""
        return [one for one in (self.early_stopping, self.ewc) if one]
