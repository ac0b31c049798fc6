"""Which fields of a recipe go with which objective: what would not be used is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_kit.objective_spec import PREFERENCE, REFERENCED, PreferenceSpec

if TYPE_CHECKING:
    from lora_kit.recipe import Recipe

# Fields of `preference` that one objective alone goes by.
OWN = {
    "loss": "dpo",
    "label_smoothing": "dpo",
    "desirable_weight": "kto",
    "undesirable_weight": "kto",
}
MADE_FOR_SFT = "is made for the objective sft"


def with_section(value: Any) -> Any:
    """A recipe as it was written, with the objective's own section where that was left out."""
    training = value.get("training") if isinstance(value, dict) else None
    if isinstance(training, dict):
        objective = training.get("objective")
    else:
        objective = getattr(training, "objective", None)
    if objective == "text":
        return _of_texts(value)
    section = "preference" if objective in PREFERENCE else objective
    if section not in ("preference", "reward", "grpo"):
        return value
    if value.get(section) is not None:
        return value
    return {**value, section: {}}


def _of_texts(value: Any) -> Any:
    """Continued pre-training is `format: text` and `documents: split`, unless it is said."""
    data = value.get("data")
    if not isinstance(data, dict):
        return value
    texts: dict[str, Any] = {"documents": "split", **data}
    for part in ("train", "validation"):
        if isinstance(sources := data.get(part), list):
            texts[part] = [
                {"format": "text", **one} if isinstance(one, dict) else one for one in sources
            ]
    return {**value, "data": texts}


def refuse_unused(recipe: Recipe) -> None:
    """Refuse what the objective does not use.

    Raises:
        ValueError: naming each such field, and why.
    """
    found = [f"{field}: {why}; leave it out" for field, why in _unused(recipe)]
    if found:
        raise ValueError(". ".join(found))


def _unused(recipe: Recipe) -> Iterator[tuple[str, str]]:
    objective = recipe.training.objective
    if recipe.preference is not None and objective not in PREFERENCE:
        yield "preference", f"the objective {objective} does not go by it (dpo, kto and orpo do)"
    for name in ("reward", "grpo"):
        if getattr(recipe, name) is not None and objective != name:
            yield name, f"the objective {objective} does not go by it"
    if recipe.training.conflict is not None and len(recipe.data.train) < 2:
        yield "training.conflict", "tasks are the sources of data.train, and there is one"
    if objective == "text":
        yield from _without_texts(recipe)
    if objective in ("sft", "text", "classification"):
        return
    if recipe.preference is not None:
        yield from _of_another(recipe.preference, objective)
    yield from _of_sft(recipe)
    if objective == "kto" and 1 in (recipe.training.batch_size, recipe.training.micro_batch_size):
        yield (
            "training.batch_size, training.micro_batch_size",
            "kto tells the divergence from answers to other prompts of a forward pass, which takes "
            "two examples at least",
        )
    if objective == "grpo":
        yield from _of_other_answers(recipe)


def _without_texts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for part in ("train", "validation"):
        for number, source in enumerate(getattr(recipe.data, part)):
            if source.format != "text":
                yield f"data.{part}.{number}.format", "the objective text learns texts alone"
    if recipe.data.labels not in ("assistant", "all"):
        yield "data.labels", "every token of a text is learned"
    if recipe.retention.own_words is not None:
        yield "retention.own_words", "texts have no answers that the base could write again"


def _of_another(spec: PreferenceSpec, objective: str) -> Iterator[tuple[str, str]]:
    for name, owner in OWN.items():
        if objective != owner and getattr(spec, name) != PreferenceSpec.model_fields[name].default:
            yield f"preference.{name}", f"{owner} alone goes by it, not {objective}"
    if spec.label_smoothing and spec.loss != "sigmoid":
        yield "preference.label_smoothing", f"the loss {spec.loss} does not go by it"


def _of_sft(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What was built for supervised fine-tuning alone."""
    training, data = recipe.training, recipe.data
    for name in (
        "rates",
        "lora_plus",
        "layer_decay",
        "unfreeze_steps",
        "batch_tokens",
        "conflict",
        "distillation",
    ):
        if getattr(training, name):
            yield f"training.{name}", MADE_FOR_SFT
    for name in ("anchor", "mask", "consolidation", "budget", "own_words"):
        if getattr(recipe.retention, name) is not None:
            yield f"retention.{name}", MADE_FOR_SFT
    validated = "the validation loss is that of sft; held-out rows are a task of a suite"
    if data.validation:
        yield "data.validation", f"{validated} (pairs: multiple_choice, rewards: generation)"
    if training.validate_steps is not None:
        yield "training.validate_steps", validated
    if data.replay is not None:
        yield "data.replay", f"{MADE_FOR_SFT}; rows of another kind can stand in data.train"
    if data.documents != "cut":
        yield "data.documents", f"{training.objective} learns from no texts"
    if data.packing:
        yield "data.packing", MADE_FOR_SFT
    if data.labels != "assistant":
        yield "data.labels", f"what {training.objective} looks at is the last turn of a row"
    if "scratch" in recipe.evaluation.arms:
        yield "evaluation.arms", f"scratch {MADE_FOR_SFT}"
    if recipe.adapter.method == "adalora":
        yield "adapter.method", f"adalora {MADE_FOR_SFT}"
    if recipe.adapter.dropout and training.objective in REFERENCED:
        yield (
            "adapter.dropout",
            f"{training.objective} compares what is trained with the reference policy, and both "
            "have to be computed without chance",
        )


def _of_other_answers(recipe: Recipe) -> Iterator[tuple[str, str]]:
    assert recipe.grpo is not None
    answers = recipe.training.batch_size * recipe.grpo.generations
    micro = recipe.training.micro_batch_size
    if micro is not None and answers % micro:
        yield (
            "training.micro_batch_size",
            f"a step has {answers} answers ({recipe.training.batch_size} prompts of "
            f"{recipe.grpo.generations}), which is no multiple of {micro}",
        )
