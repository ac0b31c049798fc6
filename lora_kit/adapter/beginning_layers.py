"""Which layers of an adapter an initialisation begins, and that each of them can begin so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

import torch

from lora_kit.adapter.peft_methods import as_asked
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.initialisations import OPTION
from lora_kit.runtime.errors import AdapterError

if TYPE_CHECKING:
    from peft import EvaConfig, LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer

# PEFT's of the one adapter that there is.
NAME = "default"


def beginning_layers(model: PeftModel, spec: AdapterSpec, kind: str) -> dict[str, LoraLayer]:
    """The adapter's layers, each of which can begin as the initialisation does.

    Args:
        model: with the adapter attached.
        spec: of the adapter.
        kind: of `initialisation_of`.

    Raises:
        AdapterError: if a layer has no such initialisation, or fewer directions than the rank.
    """
    from peft.tuners.lora import LoraLayer

    found = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    linear = {name for name, layer in found.items() if _is_linear(layer)}
    for name, layer in found.items():
        if name not in linear:
            raise AdapterError(
                f"adapter.options.{OPTION}: {kind} is made for linear layers, and {name} is "
                f"{type(layer.get_base_layer()).__name__}; {_other_targets(linear)}"
            )
        if kind in ("corda", "eva") and layer is model.get_output_embeddings():
            raise AdapterError(
                f"adapter.options.{OPTION}: {kind} goes by what the blocks see, and {name} is "
                "above them; leave it out of adapter.target_modules"
            )
    _require_directions(found, kind, cast("LoraConfig", as_asked(spec, model.get_base_model())))
    return found


def _is_linear(layer: LoraLayer) -> bool:
    return isinstance(layer.get_base_layer(), torch.nn.Linear) and NAME in layer.lora_A


def _other_targets(linear: Collection[str]) -> str:
    """What to do where a layer is not linear, by the names of those that are."""
    if not linear:
        return f"the adapter reaches none that is; leave adapter.options.{OPTION} out"
    names = sorted({name.rpartition(".")[2] for name in linear})
    return f"name others in adapter.target_modules, such as [{', '.join(names)}]"


def _require_directions(layers: Mapping[str, LoraLayer], kind: str, own: LoraConfig) -> None:
    """Raises AdapterError if a layer has fewer directions than the factors begin with."""
    ranks = {name: _rank_and_most(layer, kind, own) for name, layer in layers.items()}
    for name, (rank, most) in ranks.items():
        if rank > most:
            layer = layers[name]
            looked = " (rank times eva_config.rho)" if kind == "eva" else ""
            possible = min(own.r * limit // one for one, limit in ranks.values())
            advice = (
                f"lower it to {possible}" if possible else "leave it out of adapter.target_modules"
            )
            raise AdapterError(
                f"adapter.rank: {rank}{looked}: {name} is {layer.out_features} by "
                f"{layer.in_features}, and has no more than {most} directions for {kind} to begin "
                f"with; {advice}"
            )


def _rank_and_most(layer: LoraLayer, kind: str, own: LoraConfig) -> tuple[int, int]:
    """How many directions a layer begins with, and how many it has."""
    inputs, out = cast("int", layer.in_features), cast("int", layer.out_features)
    if kind == "lora_ga":
        # One factor takes its directions behind those of the other.
        return own.r, min(inputs, out) // 2
    if kind == "loftq":
        return layer.r[NAME], min(inputs, out)
    if kind == "eva":
        return round(own.r * cast("EvaConfig", own.eva_config).rho), inputs
    return own.r, min(inputs, out)
