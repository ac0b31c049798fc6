"""What is known before step 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_kit.backbone.load import Backbone
from lora_kit.data.tokenization import Example
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.launch import Launch, current_launch
from lora_kit.training.retention.texts import RetentionTexts

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Situation:
    """A recipe, and what there is of it so far; what is not there is `None` or empty.

    Attributes:
        examples: that are trained on.
        held_out: whose loss is watched.
        texts: by which retention is measured or held.
    """

    recipe: Recipe
    launch: Launch = field(default_factory=current_launch)
    backbone: Backbone | None = None
    model: PeftModel | None = None
    examples: Sequence[Example] = ()
    held_out: Sequence[Example] = ()
    texts: RetentionTexts = field(default_factory=RetentionTexts)

    @property
    def loaded(self) -> Backbone:
        """The backbone, in a check that applies where there is one."""
        assert self.backbone is not None
        return self.backbone

    @property
    def attached(self) -> PeftModel:
        """The model, in a check that applies where there is one."""
        assert self.model is not None
        return self.model
