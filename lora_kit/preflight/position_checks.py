"""Whether everything that goes through the backbone, or its teacher, finds a place there."""

from __future__ import annotations

from collections.abc import Iterable

from lora_kit.backbone.positions import Positions
from lora_kit.data.tokenization import Example
from lora_kit.preflight.situation import Situation
from lora_kit.runtime.errors import DataError, RecipeError
from lora_kit.training.distillation import require_places
from lora_kit.training.preferences.unit_batches import prompt_of


def within_its_positions(situation: Situation) -> None:
    """Raises DataError if an example, a held-out row or a text takes more than there are."""
    longest = situation.recipe.data.max_length
    _require_places(situation, situation.examples, f"data.max_length: {longest}", "it")
    _require_places(situation, situation.held_out, "data.validation", "data.max_length")
    for field, texts in situation.texts.named.items():
        _require_places(situation, texts.examples, f"{field}.length: {texts.length}", "it")


def _require_places(
    situation: Situation, examples: Iterable[Example], field: str, lowered: str
) -> None:
    positions = Positions.of(situation.loaded.model)
    before = situation.recipe.adapter.virtual_tokens
    for example in examples:
        if lacking := positions.lacking(example.input_ids, before=before):
            raise DataError(
                f"{field}: {example.origin} {lacking} in {situation.loaded.files.reference}; "
                f"lower {lowered}"
            )


def room_for_answers(situation: Situation) -> None:
    """Raises RecipeError if an answer that is to be rewarded may find no place."""
    spec = situation.recipe.grpo
    if spec is None:
        return
    positions = Positions.of(situation.loaded.model)
    before = situation.recipe.adapter.virtual_tokens
    for example in situation.examples:
        # Unlike in an evaluation, the last token is read: the answer is scored as a whole.
        behind = spec.max_new_tokens + 1
        if lacking := positions.lacking(prompt_of(example), behind, before):
            raise RecipeError(
                f"grpo.max_new_tokens: {spec.max_new_tokens}: {example.origin}: a prompt with so "
                f"long an answer {lacking} in {situation.loaded.files.reference}; lower it"
            )


def taught_what_it_can_read(situation: Situation) -> None:
    """Raises TrainingError if an example is longer than the teacher has positions for."""
    spec = situation.recipe.training.distillation
    if spec is not None:
        require_places(spec, situation.examples)
