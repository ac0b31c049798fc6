"""The recipe's `token_classification` section: a head that marks the entities of a text."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_kit.recipe.section import Distinct, Section


class TokenClassificationSpec(Section):
    """A head on top of the backbone that predicts a BIO tag for each word.

    The first token of a word carries its tag, and the loss is the cross-entropy, mean over words.
    """

    entities: Annotated[Distinct[str], Field(min_length=1)] | None = None
    """Types of entities in the order of the head's outputs, which are `O`, and `B-X` and `I-X` for
    each type X. Default: the types of the training rows, sorted."""
