"""The recipe's `embedding` section: vectors of texts, learned from pairs."""

from __future__ import annotations

from typing import Literal

from lora_kit.recipe.section import Positive, Section

# Hidden states that become the vector of a text.
Pooling = Literal["mean", "cls", "last"]


class EmbeddingSpec(Section):
    """Vectors of unit length for texts, trained by InfoNCE with in-batch negatives."""

    pooling: Literal["auto"] | Pooling = "auto"
    """Hidden states of the last layer that become the vector. `mean`: of all tokens; `cls`: of the
    first token, for encoders; `last`: of the last token. `auto`: `mean` for encoders, `last` for
    decoders, whose last token alone has seen the whole text."""
    temperature: Positive = 0.05
    """Divisor of the cosines in the loss; lower values raise the weight of the hardest
    negatives."""
