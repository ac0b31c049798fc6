"""Checks that every sequence fits into the positions of the backbone, or of the teacher."""

from __future__ import annotations

from collections.abc import Iterable

from lora_kit.backbone.positions import PositionLimits, trained_window
from lora_kit.backbone.tokenizer import embedding_rows, without_embedding
from lora_kit.data.supervision import Example
from lora_kit.preflight.context import PreflightContext
from lora_kit.runtime.errors import DataError, RecipeError
from lora_kit.training.distillation import require_positions
from lora_kit.training.preferences.prompts import student_prompt, teacher_prompt
from lora_kit.training.preferences.unit_batches import prompt_tokens


def require_example_positions(context: PreflightContext) -> None:
    """Refuse with DataError an example, held-out row or retention text longer than the backbone.

    Virtual tokens count.
    """
    longest = context.recipe.data.max_length
    _require_positions(context, context.examples, f"data.max_length: {longest}", "data.max_length")
    _require_positions(context, context.held_out, "data.validation", "data.max_length")
    for field, texts in context.texts.by_field.items():
        length = f"{field}.length"
        _require_positions(context, texts.examples, f"{length}: {texts.length}", length)


def _require_positions(
    context: PreflightContext, examples: Iterable[Example], field: str, remedy: str
) -> None:
    backbone = context.loaded_backbone
    positions, rows = PositionLimits.of(backbone.model), embedding_rows(backbone.model)
    virtual_tokens = context.recipe.adapter.virtual_tokens
    for example in examples:
        if unknown := without_embedding(example.input_ids, rows, backbone.tokenizer):
            raise DataError(
                f"{example.origin or field}: {unknown} in {backbone.files.reference}. Fix: remove "
                "the token from the row, or use a backbone that knows it"
            )
        if overflow := positions.overflow(example.input_ids, virtual_tokens=virtual_tokens):
            raise DataError(
                f"{field}: {example.origin} {overflow} in "
                f"{backbone.files.reference}. Fix: lower {remedy}"
            )


def warn_of_long_examples(context: PreflightContext) -> str | None:
    """Return a warning of examples longer than the backbone's window, where positions go on."""
    window = trained_window(context.loaded_backbone.model)
    examples = [*context.examples, *context.held_out]
    longest = max((len(example.input_ids) for example in examples), default=0)
    longest += context.recipe.adapter.virtual_tokens
    if window is None or longest <= window:
        return None
    count = sum(
        len(one.input_ids) + context.recipe.adapter.virtual_tokens > window for one in examples
    )
    return (
        f"data.max_length: {count} of {len(examples)} examples are longer than the window of "
        f"{window} tokens that {context.loaded_backbone.files.reference} was made for (the longest "
        f"has {longest}). Set data.max_length: {window}, unless the adapter is to lengthen it"
    )


def require_answer_positions(context: PreflightContext) -> None:
    """Refuse with RecipeError a prompt without enough positions for its sampled answer."""
    spec = context.recipe.grpo
    if spec is None:
        return
    positions = PositionLimits.of(context.loaded_backbone.model)
    virtual_tokens = context.recipe.adapter.virtual_tokens
    # Unlike in an evaluation, the last generated token is an input too: the answer is scored.
    new_tokens = spec.max_new_tokens + 1
    for example in context.examples:
        if overflow := positions.overflow(prompt_tokens(example), new_tokens, virtual_tokens):
            raise RecipeError(
                f"grpo.max_new_tokens: {spec.max_new_tokens}: {example.origin}: the prompt with an "
                f"answer of this length {overflow} in {context.loaded_backbone.files.reference}. "
                "Fix: lower grpo.max_new_tokens"
            )


def check_demonstrations(context: PreflightContext) -> str | None:
    """Refuse a row of sdft whose prompts and answer exceed the positions of the backbone.

    Returns:
        Warning of teacher's prompts beyond the backbone's window, where positions go on.

    Raises:
        DataError: if the chat template does not support the teacher's prompt of a row.
        RecipeError: if an answer after one of the prompts has too few positions.
    """
    spec, backbone = context.recipe.sdft, context.loaded_backbone
    if spec is None:
        return None
    positions, tokenizer = PositionLimits.of(backbone.model), backbone.tokenizer
    longest = 0
    for unit in context.units:
        prompts = {
            "student": student_prompt(unit.row, tokenizer),
            "teacher": teacher_prompt(unit.row, spec, tokenizer),
        }
        for reader, prompt in prompts.items():
            longest = max(longest, len(prompt))
            # The last generated token is an input too: the answer is scored.
            if overflow := positions.overflow(prompt, spec.max_new_tokens + 1):
                raise RecipeError(
                    f"sdft.max_new_tokens: {spec.max_new_tokens}: {unit.row.origin}: the "
                    f"{reader}'s prompt with an answer of this length {overflow} in "
                    f"{backbone.files.reference}. Fix: lower sdft.max_new_tokens, or shorten the "
                    "row"
                )
    window = trained_window(backbone.model)
    if window is None or longest + spec.max_new_tokens <= window:
        return None
    return (
        f"sdft.max_new_tokens: the longest prompt, with the demonstration in it, has {longest} "
        f"tokens, and an answer of {spec.max_new_tokens} ends beyond the window of {window} tokens "
        f"that {backbone.files.reference} was made for. Lower sdft.max_new_tokens, or shorten the "
        "rows"
    )


def require_teacher_positions(context: PreflightContext) -> None:
    """Refuse with TrainingError an example longer than the teacher's positions."""
    spec = context.recipe.training.distillation
    if spec is not None:
        require_positions(spec, context.examples)
