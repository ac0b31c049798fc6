"""LoRA's initialisations from the weights or the data: which there are, and what each is kept as.

PiSSA and its kin begin with factors B0 A0 that are not zero, and take their product out of the
backbone's weights. The base would not be there any more to be measured against, held on to or
merged into. Here the weights stay as they are, and the same product is taken out by the adapter:
one of twice the rank, of which the first half begins as B0 A0 and is trained and the second stays
-B0 A0. It is what PEFT makes of such an adapter when it is saved for others
(`path_initial_model_for_weight_conversion`), and plain LoRA to whoever reads it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig

    from lora_kit.adapter_spec import AdapterSpec
    from lora_kit.recipe import Recipe

OPTION = "init_lora_weights"
# What takes its first factors out of the weights.
SUBTRACTED = ("pissa", "olora", "corda", "lora_ga")
# What looks at training rows.
FROM_ROWS = ("corda", "eva", "lora_ga")
# What computes with the numbers of the weights in ways that those packed in 4 or 8 bits bar.
NOT_PACKED = ("corda", "lora_ga")
KNOWN = (*SUBTRACTED, "eva", "loftq")
# Sections of PEFT's configuration that are read once, at the beginning.
SECTIONS = ("corda_config", "eva_config", "loftq_config", "lora_ga_config")


def initialisation_of(spec: AdapterSpec) -> str | None:
    """The initialisation that is computed before step 1; `None` where PEFT draws the weights."""
    asked = spec.options.get(OPTION)
    if spec.method != "lora" or not isinstance(asked, str):
        return None
    # An approximation of PiSSA's factors has the number of its iterations behind it.
    kind = "pissa" if re.fullmatch(r"pissa_niter_[1-9]\d*", asked) else asked
    return kind if kind in KNOWN else None


def refusal(recipe: Recipe) -> str | None:
    """What of a recipe an initialisation does not go with, with its field."""
    spec, quantization = recipe.adapter, recipe.backbone.quantization
    weight_decay = recipe.training.weight_decay
    kind = initialisation_of(spec)
    if spec.method == "lora":
        for name in SECTIONS:
            if spec.options.get(name) and name != f"{kind}_config":
                start = name.removesuffix("_config")
                return f"adapter.options.{name}: is read with {OPTION}: {start} alone"
        if spec.options.get(OPTION) == "mica":
            return f"adapter.options.{OPTION}: mica is not tried yet; recipes/README.md lists them"
    if kind is None:
        return None
    named = f"adapter.options.{OPTION}: {kind}"
    if kind == "loftq" and quantization not in ("nf4", "fp4"):
        return (
            f"{named} begins with what 4-bit quantization took from the weights, and "
            f"backbone.quantization is {quantization}; leave it out, or use nf4"
        )
    if kind == "loftq" and recipe.merge.base != "dequantized":
        return (
            f"merge.base: {recipe.merge.base}: with {named} the adapter holds what quantization "
            "took from the weights, which the original ones still have; use dequantized"
        )
    if kind in NOT_PACKED and quantization != "none":
        return (
            f"{named} computes with the numbers of the weights, which are stored packed; set "
            "backbone.quantization: none, or use eva or pissa"
        )
    if kind in SUBTRACTED and weight_decay:
        return (
            f"training.weight_decay: {weight_decay:g}: with {named} it would pull at the half of "
            "the factors that stands for what is taken out of the weights; set it to 0"
        )
    if kind in SUBTRACTED and recipe.retention.consolidation is not None:
        return (
            f"retention.consolidation: with {named} it would pull at the half of the factors that "
            "stands for what is taken out of the weights; use retention.anchor"
        )
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if spec.options.get(name)]
    if patterns and kind != "loftq":
        return f"adapter.options.{patterns[0]}: not together with {named}; leave it out"
    if spec.options.get("loftq_config"):
        return (
            "adapter.options.loftq_config: the weights are quantized once, as "
            "backbone.quantization says; leave it out"
        )
    section = spec.options.get("corda_config")
    if kind == "corda" and isinstance(section, dict):
        return _of_corda(section)
    return None


def _of_corda(section: dict[str, Any]) -> str | None:
    where = "adapter.options.corda_config"
    for name in ("cache_file", "covariance_file"):
        if section.get(name):
            return f"{where}.{name}: PEFT reads it as pickled Python, which can run code; leave it"
    if section.get("corda_method", "ipm") != "ipm":
        return (
            f"{where}.corda_method: {section['corda_method']} wants texts of what is to be kept; "
            "the training rows are looked at here, which is ipm. To keep what the base knows use "
            "retention.anchor"
        )
    return None


def given_sections(kind: str | None) -> dict[str, Any]:
    """What PEFT wants with an initialisation, and a recipe has nothing to say about."""
    given: dict[str, dict[str, Any]] = {
        "loftq": {"loftq_bits": 4},
        "eva": {"rho": 2.0},
        "corda": {"corda_method": "ipm"},
        "lora_ga": {"scale": "stable"},
    }
    return {f"{kind}_config": given[kind]} if kind in given else {}


def as_attached(own: LoraConfig, kind: str) -> LoraConfig:
    """The configuration of the adapter that is attached, trained and saved.

    Args:
        own: PEFT's of the initialisation as it was asked for.
        kind: of `initialisation_of`.
    """
    plain: dict[str, Any] = {OPTION: True, **dict.fromkeys(SECTIONS), "loftq_config": {}}
    if kind == "eva":
        # It is told its ranks by the data, with this configuration; see `training.initial_factors`.
        return own
    if kind not in SUBTRACTED:
        return dataclasses.replace(own, **plain)
    # Both halves are scaled as the one would have been.
    alpha = own.lora_alpha * (math.sqrt(2) if own.use_rslora else 2)
    return dataclasses.replace(own, **plain, r=2 * own.r, lora_alpha=alpha)
