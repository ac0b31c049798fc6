"""Built-in sources of multiple-choice items, by their names in suites."""

from __future__ import annotations

from collections.abc import Callable

from lora_kit.evaluation.items import arithmetic, bias, knowledge, language, reasoning
from lora_kit.evaluation.items.row import ChoiceRow

CHOICE_SOURCES: dict[str, Callable[[], list[ChoiceRow]]] = {
    "general-knowledge": knowledge.knowledge_rows,
    "reasoning": reasoning.reasoning_rows,
    "language": language.language_rows,
    "arithmetic": arithmetic.arithmetic_rows,
    "bias": bias.bias_rows,
}
