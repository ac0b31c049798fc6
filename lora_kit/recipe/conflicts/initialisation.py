"""Rules about `adapter.options.init_lora_weights`."""

from __future__ import annotations

from collections.abc import Iterator

from lora_kit.recipe.initialisations import (
    NOT_PACKED,
    OPTION,
    SECTIONS,
    SUBTRACTED,
    initialisation_of,
)
from lora_kit.recipe.problem import Problem, conflict
from lora_kit.recipe.sections import RecipeSections

FIELD = f"adapter.options.{OPTION}"


def unused_options(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse options of an initialization that is not asked for, and untested ones."""
    adapter, kind = recipe.adapter, initialisation_of(recipe.adapter)
    if adapter.method != "lora":
        return
    for name in SECTIONS:
        if adapter.options.get(name) and name != f"{kind}_config":
            yield conflict(
                f"adapter.options.{name}",
                FIELD,
                reason=f"is read with {OPTION}: {name.removesuffix('_config')} only",
            )
    if adapter.options.get(OPTION) == "mica":
        yield conflict(
            FIELD,
            reason="is not tested here",
            given="mica",
            fix="use one listed in recipes/guide/methods.md",
        )
    if kind and adapter.options.get("loftq_config"):
        yield conflict(
            "adapter.options.loftq_config",
            FIELD,
            reason="the weights are quantized once, as backbone.quantization says",
        )


def needs_quantization(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse LoftQ without 4-bit weights."""
    quantization = recipe.backbone.quantization
    if initialisation_of(recipe.adapter) == "loftq" and quantization not in ("nf4", "fp4"):
        yield conflict(
            FIELD,
            "backbone.quantization",
            reason="loftq begins with the error of 4-bit quantization, and backbone.quantization "
            f"is {quantization}",
            fix="remove it, or set backbone.quantization: nf4",
        )


def needs_full_precision(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse initializations that need unquantized weights on quantized ones."""
    kind, quantization = initialisation_of(recipe.adapter), recipe.backbone.quantization
    if kind in NOT_PACKED and quantization != "none":
        yield conflict(
            FIELD,
            "backbone.quantization",
            reason=f"{kind} needs unquantized weights, and backbone.quantization is {quantization}",
            fix="set backbone.quantization: none, or use eva or pissa",
        )


def subtracted_factors(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse penalties that would move the factors that stand for what is subtracted."""
    kind = initialisation_of(recipe.adapter)
    if kind not in SUBTRACTED:
        return
    reason = f"would change the fixed half of the factors of {OPTION}: {kind}"
    if recipe.training.weight_decay:
        yield conflict(
            "training.weight_decay",
            FIELD,
            reason=reason,
            given=f"{recipe.training.weight_decay:g}",
            fix="set it to 0",
        )
    if recipe.retention.ewc is not None:
        yield conflict("retention.ewc", FIELD, reason=reason, fix="use retention.kl")


def patterns(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse ranks and alphas by module with a computed initialization."""
    kind = initialisation_of(recipe.adapter)
    if kind in (None, "loftq"):
        return
    for name in ("rank_pattern", "alpha_pattern"):
        if recipe.adapter.options.get(name):
            yield conflict(
                f"adapter.options.{name}",
                FIELD,
                reason=f"does not work with {OPTION}: {kind}",
            )


def options_of_corda(recipe: RecipeSections) -> Iterator[Problem]:
    """Refuse CorDA's pickled caches, and a mode that is not the one of its rows or texts."""
    texts, section = recipe.retention.corda, recipe.adapter.options.get("corda_config")
    if initialisation_of(recipe.adapter) != "corda":
        if texts is not None:
            yield conflict(
                "retention.corda",
                FIELD,
                reason=f"is read with {OPTION}: corda only",
                fix=f"set {FIELD}: corda, or remove it",
            )
        return
    if not isinstance(section, dict):
        return
    where = "adapter.options.corda_config"
    for name in ("cache_file", "covariance_file"):
        if section.get(name):
            yield conflict(
                f"{where}.{name}",
                reason="PEFT reads it as pickled Python, which can run code",
            )
    mode = section.get("corda_method")
    if mode == "kpm" and texts is None:
        yield conflict(
            f"{where}.corda_method",
            "retention.corda",
            reason="needs texts that represent what the base knows",
            given=mode,
            fix="add retention.corda",
        )
    elif mode == "ipm" and texts is not None:
        yield conflict(
            f"{where}.corda_method",
            "retention.corda",
            reason="uses training rows, and retention.corda uses texts, which is kpm",
            given=mode,
            fix="remove one of the two",
        )
