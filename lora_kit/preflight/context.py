"""Inputs of the checks that run before step 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_kit.backbone.load import Backbone
from lora_kit.data.batches import resolve_packing
from lora_kit.data.supervision import Example
from lora_kit.data.units import Unit
from lora_kit.recipe.data import Packing
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.launch import Launch
from lora_kit.runtime.processes import process_state
from lora_kit.training.retention.texts import RetentionTexts

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class PreflightContext:
    """A recipe, its launch, and the parts of the training that exist so far.

    Missing parts are `None` or empty; checks that need them are skipped.

    Attributes:
        examples: tokenized training examples.
        held_out: tokenized examples of `data.validation`.
        texts: texts used by the retention methods.
        units: rows with their examples, for objectives that train on units.
    """

    recipe: Recipe
    launch: Launch
    backbone: Backbone | None = None
    model: PeftModel | None = None
    examples: Sequence[Example] = ()
    held_out: Sequence[Example] = ()
    texts: RetentionTexts = field(default_factory=RetentionTexts)
    units: Sequence[Unit] = ()

    @property
    def loaded_backbone(self) -> Backbone:
        """The backbone, for checks that apply only if one is loaded."""
        assert self.backbone is not None
        return self.backbone

    @property
    def packing(self) -> Packing:
        """`data.packing`, its default resolved for the backbone and this machine."""
        device = process_state().device.type
        return resolve_packing(self.recipe, self.loaded_backbone.packing_attention, device)

    @property
    def adapted_model(self) -> PeftModel:
        """The model, for checks that apply only if an adapter is attached."""
        assert self.model is not None
        return self.model
