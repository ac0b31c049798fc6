"""Short questions of everyday reasoning: causes, effects, purposes, comparisons, analogies."""

from __future__ import annotations

from lora_kit.evaluation.items import written
from lora_kit.evaluation.items.row import ChoiceRow


def reasoning_rows() -> list[ChoiceRow]:
    """Return all items, in the order of `reasoning.yaml`; the same on every machine."""
    return [question.row("kind") for question in written.read_written_questions("reasoning.yaml")]
