"""The recipe's `data.augmentation` section: changed copies of the training rows."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.recipe.section import Count, Fraction, Section, Share


class ParaphraseSpec(Section):
    """Copies in other words, which a language model writes before the training."""

    writer: BackboneSpec
    """Language model that writes them, as `backbone`; it may be the recipe's own."""
    similarity: Annotated[float, Field(ge=0, lt=100)] = 30.0
    """Smallest chrF (0 to 100) of a copy against its row. One that is less like it, has other
    numbers or the same words, or does not end is left out."""


class AugmentationSpec(Section):
    """Changed copies of the training rows.

    Words are changed at random (Wei and Zou 2019, arXiv:1901.11196), or texts are written again;
    targets stay. The arm `plain` is trained without copies.
    """

    copies: Count = 1
    """Changed copies of each row."""
    dropout: Fraction = 0.1
    """Probability of each word to be left out. Default with `paraphrase`: 0."""
    swaps: Fraction = 0.1
    """Share of a text's words that change places with another one. Default with `paraphrase`: 0."""
    synonyms: Share = 0.0
    """English: probability of each word with a synonym in WordNet to be replaced by one; needs
    WordNet's files (`apt install wordnet-base`, or NLTK's corpus `wordnet`)."""
    paraphrase: ParaphraseSpec | None = None
    """Copies in other words, to which the other changes are then made."""

    @model_validator(mode="before")
    @classmethod
    def _paraphrases_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("paraphrase"):
            return {"dropout": 0.0, "swaps": 0.0} | value
        return value

    @model_validator(mode="after")
    def _require_a_change(self) -> AugmentationSpec:
        if not (self.dropout or self.swaps or self.synonyms or self.paraphrase):
            raise ValueError(
                "changes nothing with `dropout` 0, `swaps` 0 and `synonyms` 0. Fix: set one of "
                "them or `paraphrase`, or remove it"
            )
        return self
