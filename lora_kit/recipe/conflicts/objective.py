"""Rules about `training.objective`: fields that it does not use are refused."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.objective import (
    OF_TEXTS,
    PREFERENCE,
    REFERENCED,
    SECTION_OF,
    SUPERVISED,
    PreferenceSpec,
)
from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import RecipeSections

# Fields of `preference` that a single objective reads.
OWN = {
    "loss": "dpo",
    "label_smoothing": "dpo",
    "desirable_weight": "kto",
    "undesirable_weight": "kto",
}
# Fields of `training` that only supervised objectives read; the last ones need a language model.
OF_SUPERVISED = (
    "lr_multipliers",
    "loraplus_lr_ratio",
    "layerwise_lr_decay",
    "gradual_unfreezing_steps",
    "max_tokens_per_batch",
)
OF_LANGUAGE_MODELING = (
    "gradient_conflict",
    "distillation",
    "activation_offloading",
    "compile",
    "liger",
    "neftune_noise_alpha",
)
ON_SUPERVISED = f"works with the objectives {', '.join(SUPERVISED[:-1])} and {SUPERVISED[-1]} only"
ON_LANGUAGE_MODELING = "works with the objectives sft and text only"
FIXES = {
    "data.validation": "evaluate held-out rows as a task of a suite: multiple_choice for pairs, "
    "generation for rewards, either for answers",
    "data.replay": "add its rows to data.train",
    "evaluation.arms": "remove scratch",
    "adapter.method": "use lora",
}
OBJECTIVE = "training.objective"


def _unused(recipe: RecipeSections, field: str, reason: str, fix: str = "remove it") -> Problem:
    return conflict(
        field, OBJECTIVE, reason=f"{reason} ({OBJECTIVE} is {recipe.training.objective})", fix=fix
    )


def sections_of_other_objectives(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse sections that the objective does not read."""
    objective = recipe.training.objective
    if recipe.preference is not None and objective not in PREFERENCE:
        yield _unused(recipe, "preference", "is read by the objectives dpo, kto and orpo only")
    for reader, name in SECTION_OF.items():
        if getattr(recipe, name) is not None and objective != reader:
            yield _unused(recipe, name, f"is read by the objective {reader} only")


def fields_of_other_losses(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse fields of `preference` that the objective or its loss does not read."""
    spec, objective = recipe.preference, recipe.training.objective
    if spec is None or objective not in PREFERENCE:
        return
    for name, owner in OWN.items():
        if objective != owner and getattr(spec, name) != PreferenceSpec.model_fields[name].default:
            yield _unused(recipe, f"preference.{name}", f"is read by the objective {owner} only")
    if spec.label_smoothing and spec.loss != "sigmoid":
        yield conflict(
            "preference.label_smoothing",
            "preference.loss",
            reason=f"is read by the loss sigmoid only, and preference.loss is {spec.loss}",
            given=spec.label_smoothing,
        )


def text_only(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse what an objective on texts does not read."""
    objective = recipe.training.objective
    if objective not in OF_TEXTS:
        return
    for part in ("train", "validation"):
        for number, source in enumerate(getattr(recipe.data, part)):
            if source.format != "text":
                yield conflict(
                    f"data.{part}.{number}.format",
                    OBJECTIVE,
                    reason=f"objective {objective} accepts only format: text",
                    given=source.format,
                    fix="remove it, or use objective: sft" if objective == "text" else "remove it",
                )
    if recipe.data.train_on not in ("assistant", "all"):
        yield _unused(recipe, "data.train_on", "every token of a text is trained on")
    if recipe.retention.self_distillation is not None and objective == "text":
        yield _unused(
            recipe, "retention.self_distillation", "texts have no answers to be rewritten"
        )


def made_for_sft(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse what only supervised fine-tuning supports."""
    training, data, objective = recipe.training, recipe.data, recipe.training.objective
    if objective in SUPERVISED:
        return
    unread = {
        **{f"training.{name}": (getattr(training, name), ON_SUPERVISED) for name in OF_SUPERVISED},
        **{
            f"training.{name}": (getattr(training, name), ON_LANGUAGE_MODELING)
            for name in OF_LANGUAGE_MODELING
        },
        **{
            f"retention.{name}": (True, ON_LANGUAGE_MODELING) for name in recipe.retention.requested
        },
        "data.validation": (data.validation, "the validation loss is that of sft"),
        "training.eval_steps": (training.eval_steps, "the validation loss is that of sft"),
        "data.replay": (data.replay, ON_LANGUAGE_MODELING),
        "data.overflow": (
            data.overflow != "truncate",
            "splits texts, which this objective does not read",
        ),
        "data.packing": (data.packing, ON_LANGUAGE_MODELING),
        "data.train_on": (
            data.train_on != "assistant",
            "this objective trains on the last turn of a row",
        ),
        "evaluation.arms": (
            "scratch" in recipe.evaluation.arms,
            f"scratch {ON_LANGUAGE_MODELING}",
        ),
        "adapter.method": (recipe.adapter.method == "adalora", f"adalora {ON_SUPERVISED}"),
    }
    for field, (is_set, reason) in unread.items():
        if is_set:
            yield _unused(recipe, field, reason, FIXES.get(field, "remove it"))


def dropout_with_reference(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse dropout where the trained policy is compared with a reference policy or a teacher."""
    objective, dropout = recipe.training.objective, recipe.adapter.dropout
    if dropout and objective in (*REFERENCED, "sdft"):
        other = "teacher" if objective == "sdft" else "reference policy"
        yield conflict(
            "adapter.dropout",
            OBJECTIVE,
            reason=f"{objective} compares the adapter with the {other}, and both have to be "
            "computed without dropout",
            given=dropout,
            fix="set it to 0",
        )


def kto_batches(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse forward passes of one example, in which KTO cannot estimate the divergence."""
    training = recipe.training
    if training.objective != "kto":
        return
    for name in ("batch_size", "micro_batch_size"):
        if getattr(training, name) == 1:
            yield conflict(
                f"training.{name}",
                OBJECTIVE,
                reason="kto estimates the divergence from answers to other prompts of a forward "
                "pass, which takes two examples",
                given=1,
                fix="use at least 2",
            )


def grpo_micro_batches(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse micro batches that do not divide the answers of a step."""
    training, spec = recipe.training, recipe.grpo
    if training.objective != "grpo" or spec is None or training.micro_batch_size is None:
        return
    answers = training.batch_size * spec.num_generations
    if answers % training.micro_batch_size:
        yield conflict(
            "training.micro_batch_size",
            "training.batch_size",
            "grpo.num_generations",
            reason=f"does not divide the {answers} answers of a step ({training.batch_size} "
            f"prompts of {spec.num_generations})",
            given=training.micro_batch_size,
            fix="use a divisor",
        )
