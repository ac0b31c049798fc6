"""First examples of a training, split where supervision begins and ends."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lora_kit.backbone.load import Backbone
from lora_kit.data.prepared import PreparedData
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.recipe.objective import TEXT_HEADS

SAMPLES = 2


@dataclass(frozen=True)
class LabelSpan:
    """Part of an example's text that is either fully supervised or not supervised."""

    text: str
    supervised: bool


def label_samples(data: PreparedData, backbone: Backbone) -> tuple[tuple[LabelSpan, ...], ...]:
    """Return the first examples of the training data, split by supervision."""
    has_targets = backbone.head is not None and backbone.head.kind in TEXT_HEADS
    spans = target_spans if has_targets else supervised_spans
    return tuple(spans(example, backbone.tokenizer) for example in data.examples[:SAMPLES])


def target_spans(example: Example, tokenizer: Any) -> tuple[LabelSpan, ...]:
    """Return an example's text as the input of a head, and its target as supervised text."""
    text = tokenizer.decode(list(example.input_ids))
    return LabelSpan(text, supervised=False), LabelSpan(f" {example.label} ", supervised=True)


def supervised_spans(example: Example, tokenizer: Any) -> tuple[LabelSpan, ...]:
    """Return an example's text as the input of the model, split by supervision."""
    pairs = zip(example.input_ids, example.labels, strict=True)
    return tuple(
        LabelSpan(tokenizer.decode([token for token, _ in group]), is_supervised)
        for is_supervised, group in groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX)
    )
