"""Which form is English: grammar as minimal pairs, words by meaning and spelling, set phrases."""

from __future__ import annotations

from lora_kit.evaluation.items import written
from lora_kit.evaluation.items.row import ChoiceRow


def rows() -> list[ChoiceRow]:
    """All items, in the order of `language.yaml`; the same on every machine."""
    return [question.row("phenomenon") for question in written.read("language.yaml")]
