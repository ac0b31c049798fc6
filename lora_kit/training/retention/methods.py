"""A recipe's ways to keep, made ready for the trainer."""

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
    """What acts during the steps; `None` where the recipe has no such way."""

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
        cutting: MicroBatcher,
        most: int,
        record: Callable[[dict[str, float]], None],
    ) -> RetentionMethods:
        """As the recipe says, on the texts that there are.

        Args:
            recipe: what to do.
            backbone: of the model.
            model: with its adapter.
            texts: that they look at.
            cutting: of a step into forward passes.
            most: tokens of a forward pass, padding included.
            record: takes a step's figures.
        """
        spec, seed, pad = recipe.retention, recipe.seed, backbone.tokenizer.pad_token_id
        kl = early_stopping = ewc = None
        if spec.kl and texts.kl:
            examples = texts.kl.examples
            kl = KlPenalty(model, examples, spec.kl, seed, pad, cutting.rows, cutting.tokens)
        if spec.early_stopping and texts.early_stopping:
            early_stopping = RetentionEarlyStopping(
                model, backbone, texts.early_stopping.examples, spec.early_stopping, record, most
            )
        if spec.ewc and texts.ewc:
            examples = texts.ewc.examples
            ewc = EwcPenalty(model, backbone, examples, spec.ewc)
        return cls(kl, early_stopping, ewc)

    @property
    def callbacks(self) -> list[RetentionEarlyStopping | EwcPenalty]:
        """Those that the trainer calls at its steps; the anchor is part of the step itself."""
        return [one for one in (self.early_stopping, self.ewc) if one]
