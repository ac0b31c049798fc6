"""Rules about `adapter`: methods that exclude other fields."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.adapter import VIRTUAL, VIRTUAL_TOKENS
from lora_kit.recipe.objective import LANGUAGE_MODELING
from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import RecipeSections


def method_on_quantized_weights(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse methods that need unquantized weights on quantized ones."""
    method, quantization = recipe.adapter.method, recipe.backbone.quantization
    if reason := recipe.adapter.why_not_on(quantization):
        yield conflict(
            "adapter.method",
            "backbone.quantization",
            reason=f"{method} {reason}, and backbone.quantization is {quantization}",
            fix="set backbone.quantization: none, or use another method such as lora",
        )


def target_modules_of_virtual_tokens(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse target modules for methods that change no module."""
    adapter = recipe.adapter
    if adapter.method in VIRTUAL and adapter.target_modules != "all-linear":
        yield conflict(
            "adapter.target_modules",
            "adapter.method",
            reason=f"{adapter.method} prepends virtual tokens and changes no module",
            given=adapter.target_modules,
        )


def number_of_virtual_tokens(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse a number of virtual tokens that is no whole number from 1 on."""
    adapter = recipe.adapter
    count = adapter.options.get("num_virtual_tokens", VIRTUAL_TOKENS)
    if adapter.method in VIRTUAL and (type(count) is not int or count < 1):
        yield conflict(
            "adapter.options.num_virtual_tokens",
            "adapter.method",
            reason="must be a whole number, at least 1",
            given=count,
            fix=f"set a number such as {VIRTUAL_TOKENS}",
        )


def virtual_tokens_elsewhere(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse virtual tokens with fields that they do not work with."""
    method, training = recipe.adapter.method, recipe.training
    if method not in VIRTUAL:
        return
    # TRL's other objectives and a classifier's head have forward passes of their own, in which
    # virtual tokens have not been tested.
    if training.objective not in LANGUAGE_MODELING:
        yield conflict(
            "adapter.method",
            "training.objective",
            reason=f"{method} supports the objectives {' and '.join(LANGUAGE_MODELING)} only, and "
            f"training.objective is {training.objective}",
            fix="use lora",
        )
    if recipe.data.packing:
        yield conflict(
            "data.packing",
            "adapter.method",
            reason=f"{method} prepends its tokens to the first example of a packed row only",
        )
    if training.gradient_checkpointing:
        yield conflict(
            "training.gradient_checkpointing",
            "adapter.method",
            reason=f"recomputed layers lose the keys and values that {method} prepends",
            fix="set training.micro_batch_size instead",
        )
    for name in ("layerwise_lr_decay", "gradual_unfreezing_steps"):
        if getattr(training, name) is not None:
            yield conflict(
                f"training.{name}",
                "adapter.method",
                reason=f"{method} trains no blocks",
                given=getattr(training, name),
            )


def loraplus_without_lora(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse LoRA+ for methods without two factors."""
    ratio, method = recipe.training.loraplus_lr_ratio, recipe.adapter.method
    if ratio is not None and method != "lora":
        yield conflict(
            "training.loraplus_lr_ratio",
            "adapter.method",
            reason=f"needs LoRA's second factor, and adapter.method is {method}",
            given=ratio,
        )


def adalora_with_earlier_weights(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse AdaLoRA with fields that restore earlier weights or delay blocks."""
    if recipe.adapter.method != "adalora":
        return
    asked = {
        "training.keep_best": recipe.training.keep_best,
        "training.gradual_unfreezing_steps": recipe.training.gradual_unfreezing_steps,
        "retention.early_stopping": recipe.retention.early_stopping,
    }
    for field, value in asked.items():
        if value:
            yield conflict(
                field,
                "adapter.method",
                reason="does not work with adalora, whose ranks belong to the current step",
            )


def flash_attention_in_float32(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse flash attention in a dtype that it has no kernels for."""
    specs = {"backbone": recipe.backbone}
    if recipe.training.distillation is not None:
        specs["training.distillation.teacher"] = recipe.training.distillation.teacher
    for place, spec in specs.items():
        if spec.attention.startswith("flash_attention") and spec.dtype == "float32":
            yield conflict(
                f"{place}.attention",
                f"{place}.dtype",
                reason=f"{spec.attention} has kernels for bfloat16 and float16 only, and "
                f"{place}.dtype is float32",
                fix=f"change {place}.dtype, or use sdpa",
            )
