"""The recipe's `classification` section: a head that predicts one of several classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from lora_kit.recipe.section import Distinct, Factors, NotNegative, Section

# Fields of `training` that have no effect with adapter.method head, which trains on features.
NOT_OF_A_HEAD = {
    "micro_batch_size": "the features of a step fit into memory at once",
    "max_tokens_per_batch": "the features of a step fit into memory at once",
    "lr_multipliers": "there is one module",
    "layerwise_lr_decay": "no layer below the head is trained",
    "gradual_unfreezing_steps": "there are no blocks to unfreeze",
    "gradient_checkpointing": "no activations of the backbone are kept",
}


class ClassificationSpec(Section):
    """A classification head on top of the backbone."""

    labels: Annotated[Distinct[str], Field(min_length=2)] | None = None
    """Classes in the order of the head's outputs. Default: those of the training rows, sorted."""
    class_weights: Literal["none", "balanced"] | Factors = "none"
    """Weight of a row in the loss, by its class. `none`: 1; `balanced`: rows / (classes * rows of
    the class), so that every class has the same total weight; or numbers by class, 1 for classes
    without one."""
    focal_gamma: NotNegative = 0.0
    """Focal loss: weight (1 - p)^gamma of a row whose class has probability p, which lowers the
    weight of easy rows (Lin et al. 2017, arXiv:1708.02002); 0: cross-entropy, usually 2."""

    def weights_of(self, classes: Sequence[str]) -> Literal["balanced"] | dict[int, float] | None:
        """Return the class weights by index, as scikit-learn's `class_weight`."""
        if isinstance(self.class_weights, dict):
            given = self.class_weights
            return {number: float(given.get(name, 1.0)) for number, name in enumerate(classes)}
        return "balanced" if self.class_weights == "balanced" else None
