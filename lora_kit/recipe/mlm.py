"""The recipe's `mlm` section: masked language modeling of an encoder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from lora_kit.recipe.section import Fraction, Section, Share


class MlmSpec(Section):
    """Prediction of hidden tokens from the tokens on both sides (Devlin et al. 2019,
    arXiv:1810.04805, section 3.1).

    A row that is read again in a later epoch has other tokens hidden.
    """

    probability: Annotated[Fraction, Field(gt=0)] = 0.15
    """Probability of each token to be predicted; a row of which none is drawn has one."""
    mask_share: Share = 0.8
    """Share of the predicted tokens that the mask token replaces."""
    random_share: Share = 0.1
    """Share of the predicted tokens that a random token replaces; the others stay as they are."""

    @model_validator(mode="after")
    def _require_shares_of_one(self) -> MlmSpec:
        total = self.mask_share + self.random_share
        if total > 1 + 1e-9:
            raise ValueError(
                f"`mask_share` and `random_share` are shares of the same tokens and add up to "
                f"{total:g}. Fix: lower one of them"
            )
        if not total:
            raise ValueError(
                "leaves each predicted token as it is with `mask_share` 0 and `random_share` 0, so "
                "that the model could copy it. Fix: raise `mask_share`"
            )
        return self
