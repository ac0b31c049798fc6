"""Rules about the objective mlm."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.conflicts.objective import OBJECTIVE, OF_LANGUAGE_MODELING
from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import RecipeSections


def fields_of_decoders(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse fields of `data`, `training` and `retention` that need a decoder."""
    data, training = recipe.data, recipe.training
    if training.objective != "mlm":
        return
    decoder = "needs a decoder, which predicts the next token"
    asked = {
        "data.replay": (data.replay, "rows are texts, and each source of them is trained on"),
        "data.packing": (data.packing, "an encoder reads one text a row"),
        **{f"training.{name}": (getattr(training, name), decoder) for name in OF_LANGUAGE_MODELING},
        **{f"retention.{name}": (True, decoder) for name in recipe.retention.requested},
    }
    fixes = {
        "data.replay": "add its texts to data.train",
        "data.packing": "set training.max_tokens_per_batch instead",
    }
    for field, (is_set, reason) in asked.items():
        if is_set:
            yield conflict(field, OBJECTIVE, reason=reason, fix=fixes.get(field, "remove it"))


def merge_of_masked_models(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse a second merged model, which is no arm of this objective."""
    if recipe.training.objective == "mlm" and recipe.merge.base == "both":
        yield conflict(
            "merge.base",
            OBJECTIVE,
            reason="a masked language model is merged once",
            given="both",
            fix="use dequantized or original",
        )


def adapter_of_masked_models(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse methods that change the text or its tokens, and modules that are saved anyway."""
    adapter = recipe.adapter
    if recipe.training.objective != "mlm":
        return
    reason = ""
    if adapter.virtual_tokens:
        reason = "virtual tokens are no part of the text, and cannot be merged into the encoder"
    elif adapter.method == "trainable_tokens":
        reason = "the output layer is the embedding, of which this method changes single rows"
    if reason:
        yield conflict(
            "adapter.method",
            OBJECTIVE,
            reason=reason,
            given=adapter.method,
            fix="use lora, or another method that changes layers",
        )
    if "modules_to_save" in adapter.options:
        yield conflict(
            "adapter.options.modules_to_save",
            OBJECTIVE,
            reason="a new head is saved there anyway",
        )
