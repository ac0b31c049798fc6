"""Sharding of 4-bit weights by FSDP 2, layer by layer.

Accelerate 1.15 leaves weights stored as integers out of FSDP 2, whole on each process. Stored as
floats they could be sharded, but a GPU that gathers them may change those that are NaNs
(bitsandbytes issue 1945). PyTorch's `fully_shard` shards bytes as they are, and Accelerate takes
layers that are sharded already as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lora_kit.backbone.mapped_4bit import mapped_layers, quantize_mapped
from lora_kit.runtime.errors import BackboneError, TrainingError


def shard_4bit_layers(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Quantize and shard the layers with 4-bit weights, one after the other; a collective call.

    Afterwards `Accelerator.prepare` shards the rest: embeddings, norms and the output head. A
    process holds one unsharded layer in addition to its shards. The constants of a quantization
    (one byte per 64 weights) are whole on each process.

    Args:
        model: model with its adapter, whose 4-bit layers are not quantized yet; changed in place.
        accelerator: accelerator with the settings of the launch file.

    Raises:
        BackboneError: if packed weights are not bytes, 4-bit or trained weights are in no layer, or
            torch shards no bytes.
        TrainingError: if Accelerate was told to recompute activations, and would wrap the layers.
    """
    from accelerate.utils.fsdp_utils import (
        fsdp2_prepare_auto_wrap_policy,
        get_module_children_bottom_up,
    )

    plugin = accelerator.state.fsdp_plugin
    if plugin.activation_checkpointing:
        raise TrainingError(
            "fsdp_config.fsdp_activation_checkpointing: wraps layers that are sharded already (got "
            "true). Fix: set it to false, and training.gradient_checkpointing: true in the recipe"
        )
    _require_bytes(model)
    plugin.set_auto_wrap_policy(model)
    is_layer = fsdp2_prepare_auto_wrap_policy(plugin, model)
    options = _options(accelerator)
    modules = get_module_children_bottom_up(model)[:-1] if is_layer else []
    layers = [module for module in modules if is_layer(module)]
    for layer in layers:
        quantize_mapped(layer, accelerator.device)
        _shard(layer, options)
    # Sharding gives a layer another class, by whose name Accelerate then finds it.
    plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
    _require_in_layers(model)


def _shard(layer: torch.nn.Module, options: dict[str, Any]) -> None:
    try:
        fully_shard(layer, **options)
    except RuntimeError as error:
        if "floating point" not in str(error):
            raise
        # torch 2.11 lets every shard require gradients at first, which bytes cannot.
        raise BackboneError(
            "backbone.quantization: this version of torch shards no weights that are stored as "
            f"bytes (got {torch.__version__}). Fix: install torch 2.13, or launch with "
            "accelerate_configs/ddp.yaml"
        ) from error


def _require_in_layers(model: torch.nn.Module) -> None:
    """Refuse 4-bit and trained weights outside of the sharded layers."""
    outside = [name for name, _ in mapped_layers(model)]
    trained = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not isinstance(parameter, DTensor)
    ]
    if outside or trained:
        kind = "4-bit" if outside else "trained"
        raise BackboneError(
            f"backbone.quantization: {len(outside or trained)} {kind} weights are in none of the "
            f"layers that FSDP shards (first: {(outside or trained)[0]}). Fix: set quantization: "
            "none, or launch with accelerate_configs/ddp.yaml"
        )


def optimizer_restorer(model: torch.nn.Module, optimizer: Any) -> Callable[[], None]:
    """Return a function that gives an optimizer its parameters again after `Accelerator.prepare`.

    Accelerate 1.15 finds the parameters of layers that are sharded already by the addresses of
    their shards. A shard without elements has none, as those of a rank-1 factor: the optimizer of
    that process would hold one of these parameters for all, and collective calls would not match.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(one)] for one in group["params"]] for group in optimizer.param_groups]

    def restore() -> None:
        parameters = dict(model.named_parameters())
        for group, of_group in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [parameters[name] for name in of_group]

    return restore


def _require_bytes(model: torch.nn.Module) -> None:
    for name, layer in mapped_layers(model):
        storage = layer.weight.quant_storage
        if storage is not torch.uint8:
            raise BackboneError(
                f"backbone.quantization: {name}: packed weights that are stored as floats may "
                f"change when a GPU gathers them (bitsandbytes issue 1945; got {storage}). Fix: "
                "leave bnb_4bit_quant_storage at torch.uint8"
            )


def _options(accelerator: Accelerator) -> dict[str, Any]:
    """Return the arguments of `fully_shard` that Accelerate would pass."""
    plugin = accelerator.state.fsdp_plugin
    mesh = getattr(accelerator, "torch_device_mesh", None)
    return {
        "reshard_after_forward": plugin.reshard_after_forward,
        "offload_policy": plugin.cpu_offload,
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "mesh": mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)] if mesh else None,
    }
