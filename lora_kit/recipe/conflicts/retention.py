"""Rules about `retention`."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import RecipeSections


def ewc_without_lora(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse EWC with methods other than plain LoRA."""
    adapter = recipe.adapter
    is_lora = adapter.method == "lora" and not adapter.options.get("use_dora")
    if recipe.retention.ewc is not None and not is_lora:
        named = "lora with use_dora" if adapter.method == "lora" else adapter.method
        yield conflict(
            "retention.ewc",
            "adapter.method",
            "adapter.options",
            reason=f"penalises the product of LoRA's factors, and adapter.method is {named}",
            fix="use retention.kl, which penalises the model's outputs",
        )


def two_ways_to_keep_weights(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse two decisions about which weights are kept at the end."""
    if recipe.training.keep_best and recipe.retention.early_stopping is not None:
        yield conflict(
            "training.keep_best",
            "retention.early_stopping",
            reason="decides which weights are kept, and so does retention.early_stopping: the "
            "lowest validation loss may lie past the margin",
            fix="remove one of the two",
        )


def token_losses_of_a_teacher(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse methods that change the loss of the labels where a teacher does so as well."""
    if recipe.training.distillation is None:
        return
    reasons = {
        "non_target_kl": "asks for the base's order of the tokens beside the label, and "
        "training.distillation asks for the teacher's",
        "entropy_weighting": "weighs the loss of the labels, and training.distillation learns the "
        "teacher's distributions",
    }
    for name, reason in reasons.items():
        if name in recipe.retention.requested:
            yield conflict(f"retention.{name}", "training.distillation", reason=reason)
