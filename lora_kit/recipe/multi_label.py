"""The recipe's `multi_label` section: a head that predicts any number of labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lora_kit.recipe.section import Distinct, Factors, NotNegative, Section

# Threshold without validation rows to choose one on.
EVEN = 0.5


class MultiLabelSpec(Section):
    """A multi-label head on top of the backbone, with a sigmoid for each label."""

    labels: Annotated[Distinct[str], Field(min_length=1)] | None = None
    """Labels in the order of the head's outputs. Default: those of the training rows, sorted."""
    positive_weights: Literal["none", "balanced"] | Factors = "none"
    """Weight of the rows that have a label in the loss of that label. `none`: 1; `balanced`: rows
    without the label / rows with it, so that both have the same total weight; or numbers by label,
    1 for labels without one."""
    focal_gamma: NotNegative = 0.0
    """Focal loss: weight (1 - p)^gamma of a decision that has probability p, which lowers the
    weight of easy ones (Lin et al. 2017, arXiv:1708.02002); 0: binary cross-entropy, usually 2."""
    threshold: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] = "auto"
    """Probability from which on a label is predicted. `auto`: for each label, that of the highest
    F1 on the rows of `data.validation`, stored with the adapter; 0.5 without such rows."""

    def weights_of(self, label: str) -> Literal["balanced"] | dict[int, float] | None:
        """Return the weights of rows without (0) and with (1) a label, as in scikit-learn."""
        if isinstance(self.positive_weights, dict):
            return {0: 1.0, 1: float(self.positive_weights.get(label, 1.0))}
        return "balanced" if self.positive_weights == "balanced" else None
