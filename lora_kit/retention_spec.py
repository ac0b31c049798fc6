"""The recipe's `retention` section: ways to keep what the base knew, each a switch of its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_kit.data_spec import LicenseName
from lora_kit.schema import Count, Positive, Section


class TextsSpec(Section):
    """Texts that stand for what the base knows."""

    source: str = "python-reference"
    """As in `data.train`; all of a row is looked at, prompt and answer."""
    split: str = "train"
    """As in `data.train`. Not the items of a suite: what is held on to there proves nothing."""
    length: Count = Field(default=128, ge=2)
    """Tokens of each that are looked at, from the beginning."""
    license: LicenseName | None = None
    """As in `data.train`."""


class AnchorSpec(TextsSpec):
    """A penalty for saying something else than the base on texts of another kind."""

    weight: Positive = 1.0
    """How many nats of the training loss a nat of divergence is worth."""
    rows: Count = 2
    """Texts a step, over all processes."""


class MaskSpec(Section):
    """Tokens that the base finds improbable are not learned."""

    max_perplexity: Positive = Field(default=2.5, gt=1)
    """A supervised token whose perplexity under the base is above this gets no label: 2.5 leaves
    those to which the base gives a probability of at least 0.4."""


class OwnWordsSpec(Section):
    """The base writes the answers again in its own words, and those are learned."""

    similarity: Annotated[float, Field(ge=0, le=100)] = 50.0
    """chrF (0 to 100) with the row's answer from which on the base's is taken; below, or where its
    numbers are others, the row's own is learned."""


class BudgetSpec(TextsSpec):
    """Forgetting that the training may cause; past it, it ends."""

    margin: Positive = 0.05
    """Nats per token that the loss of the texts may rise by."""
    steps: Count = 20
    """Optimizer steps from one look to the next."""
    rows: Count = Field(default=32, ge=8)
    """Texts that are looked at."""


class ConsolidationSpec(TextsSpec):
    """A penalty for moving weights that the base's texts depend on."""

    weight: Positive = 1.0
    """How many nats of the training loss a nat of divergence is worth, as far as it can be told
    from the weights."""
    rows: Count = 32
    """Texts from which it is told, once, before the training."""


class RetentionSpec(Section):
    """Against forgetting; replay, which is data, is under `data.replay`."""

    anchor: AnchorSpec | None = None
    """Kullback-Leibler divergence from the base, which is the adapter switched off."""
    mask: MaskSpec | None = None
    """Selective token masking."""
    own_words: OwnWordsSpec | None = None
    """Self-distilled targets."""
    consolidation: ConsolidationSpec | None = None
    """Elastic weight consolidation (EWC), for LoRA."""
    budget: BudgetSpec | None = None
    """A probe of the loss on texts, every so many steps."""
