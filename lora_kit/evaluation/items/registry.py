"""The built-in sources of multiple-choice items, by the name that a suite gives."""

from __future__ import annotations

from collections.abc import Callable

from lora_kit.evaluation.items import arithmetic, bias, knowledge, language, reasoning
from lora_kit.evaluation.items.row import ChoiceRow

CHOICE_SOURCES: dict[str, Callable[[], list[ChoiceRow]]] = {
    "general-knowledge": knowledge.rows,
    "reasoning": reasoning.rows,
    "language": language.rows,
    "arithmetic": arithmetic.rows,
    "bias": bias.rows,
}
