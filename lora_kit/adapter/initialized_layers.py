"""Layers of an adapter that an initialisation applies to, with its requirements checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

import torch

from lora_kit.adapter.peft_methods import DEFAULT_ADAPTER, requested_configuration
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.initialisations import OPTION
from lora_kit.runtime.errors import AdapterError

if TYPE_CHECKING:
    from peft import EvaConfig, LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer


def layers_to_initialize(model: PeftModel, spec: AdapterSpec, kind: str) -> dict[str, LoraLayer]:
    """Return the adapter's layers by name, after checking that each supports the initialisation.

    Args:
        model: model with the adapter attached.
        spec: adapter section of the recipe.
        kind: initialisation, as returned by `initialisation_of`.

    Raises:
        AdapterError: if a layer does not support the initialisation, or has fewer singular
            directions than the rank.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    linear = {
        name
        for name, layer in layers.items()
        if isinstance(layer.get_base_layer(), torch.nn.Linear) and DEFAULT_ADAPTER in layer.lora_A
    }
    for name, layer in layers.items():
        if name not in linear:
            raise AdapterError(
                f"adapter.options.{OPTION}: {kind} supports only linear layers (got {name}: "
                f"{type(layer.get_base_layer()).__name__}). Fix: {_linear_targets_advice(linear)}"
            )
        if kind in ("corda", "eva") and layer is model.get_output_embeddings():
            raise AdapterError(
                f"adapter.options.{OPTION}: {kind} uses activations inside the blocks, and the "
                f"layer {name} is outside of them. Fix: leave it out of adapter.target_modules"
            )
    requested = cast("LoraConfig", requested_configuration(spec, model.get_base_model()))
    _require_directions(layers, kind, requested)
    return layers


def _linear_targets_advice(linear: Collection[str]) -> str:
    if not linear:
        return f"leave out adapter.options.{OPTION}, since the adapter covers no linear layer"
    names = sorted({name.rpartition(".")[2] for name in linear})
    return f"name only linear layers in adapter.target_modules, such as [{', '.join(names)}]"


def _require_directions(layers: Mapping[str, LoraLayer], kind: str, requested: LoraConfig) -> None:
    """Raise AdapterError if a layer has fewer singular directions than its factors need."""
    ranks = {name: _rank_and_limit(layer, kind, requested) for name, layer in layers.items()}
    for name, (rank, limit) in ranks.items():
        if rank > limit:
            layer = layers[name]
            formula = " (rank times eva_config.rho)" if kind == "eva" else ""
            possible = min(requested.r * most // needed for needed, most in ranks.values())
            advice = (
                f"lower it to {possible}"
                if possible
                else f"leave {name} out of adapter.target_modules"
            )
            raise AdapterError(
                f"adapter.rank: {rank}{formula}: {name} ({layer.out_features} x "
                f"{layer.in_features}) has no more than {limit} directions to initialise with "
                f"{kind}. Fix: {advice}"
            )


def _rank_and_limit(layer: LoraLayer, kind: str, requested: LoraConfig) -> tuple[int, int]:
    """Return the number of directions that a layer's factors need, and the number it has."""
    inputs, out = cast("int", layer.in_features), cast("int", layer.out_features)
    if kind == "lora_ga":
        # The two factors use different directions.
        return requested.r, min(inputs, out) // 2
    if kind == "loftq":
        return layer.r[DEFAULT_ADAPTER], min(inputs, out)
    if kind == "eva":
        return round(requested.r * cast("EvaConfig", requested.eva_config).rho), inputs
    return requested.r, min(inputs, out)
