"""A recipe's ways to keep, made ready for the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_kit.backbone import Backbone
from lora_kit.recipe import Recipe
from lora_kit.training.passes import Cutting
from lora_kit.training.retention.anchor import Anchor
from lora_kit.training.retention.budget import Budget
from lora_kit.training.retention.consolidation import Consolidation
from lora_kit.training.retention.texts import RetentionTexts

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Keepers:
    """What acts during the steps; `None` where the recipe has no such way."""

    anchor: Anchor | None = None
    budget: Budget | None = None
    consolidation: Consolidation | None = None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        backbone: Backbone,
        model: PeftModel,
        texts: RetentionTexts,
        cutting: Cutting,
        most: int,
        record: Callable[[dict[str, float]], None],
    ) -> Keepers:
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
        anchor = budget = consolidation = None
        if spec.anchor and texts.anchor:
            examples = texts.anchor.examples
            anchor = Anchor(model, examples, spec.anchor, seed, pad, cutting.rows, cutting.tokens)
        if spec.budget and texts.budget:
            budget = Budget(model, backbone, texts.budget.examples, spec.budget, record, most)
        if spec.consolidation and texts.consolidation:
            examples = texts.consolidation.examples
            consolidation = Consolidation(model, backbone, examples, spec.consolidation)
        return cls(anchor, budget, consolidation)

    @property
    def callbacks(self) -> list[Budget | Consolidation]:
        """Those that the trainer calls at its steps; the anchor is part of the step itself."""
        return [one for one in (self.budget, self.consolidation) if one]
