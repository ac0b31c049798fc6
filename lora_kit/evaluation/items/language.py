"""Questions on English: grammar as minimal pairs, meaning and spelling of words, set phrases."""

from __future__ import annotations

from lora_kit.evaluation.items import written
from lora_kit.evaluation.items.row import ChoiceRow


def language_rows() -> list[ChoiceRow]:
    """Return all items, in the order of `language.yaml`; the same on every machine."""
    return [
        question.row("phenomenon") for question in written.read_written_questions("language.yaml")
    ]
