"""Checks of the launch: processes, devices and sharding that a recipe supports."""

from __future__ import annotations

import torch

from lora_kit.backbone.load import FOUR_BIT
from lora_kit.preflight.context import PreflightContext
from lora_kit.recipe.objective import ON_POLICY, PREFERENCE
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.errors import BackboneError, TrainingError
from lora_kit.runtime.launch import (
    ZERO_WEIGHTS_STAGE,
    current_launch,
    require_requested_launch,
)
from lora_kit.runtime.processes import process_state
from lora_kit.training.acceleration import require_acceleration
from lora_kit.training.step_sizes import answers_per_process

# PEFT's options that train weights of the backbone, embeddings above all.
TRAINED_IN_FULL = ("modules_to_save", "trainable_token_indices")
DDP_FIX = "Fix: launch with accelerate_configs/ddp.yaml"


def refuse_launch_fallback(context: PreflightContext) -> None:
    """Refuse with TrainingError if accelerate fell back to another launch than requested."""
    require_requested_launch(context.launch)


def refuse_sharded_quantization(context: PreflightContext) -> None:
    """Refuse with BackboneError quantized weights that cannot be sharded.

    FSDP 2 shards weights in 4 bits, which `training.sharded_4bit` quantizes layer by layer.
    """
    launch, recipe = context.launch, context.recipe
    quantization = recipe.backbone.quantization
    if quantization == "none" or not launch.sharded:
        return
    sharding = "ZeRO-3" if launch.zero_stage == ZERO_WEIGHTS_STAGE else "FSDP"
    if launch.fsdp and quantization in FOUR_BIT:
        _refuse_outside_4bit_layers(recipe)
        return
    raise BackboneError(
        "backbone.quantization: FSDP shards only weights in 4 bits, and ZeRO-3 no quantized "
        f"weights (got {quantization} under {sharding}). Fix: set quantization: none, launch 4 "
        "bits with accelerate_configs/fsdp2-qlora.yaml, or launch without sharding "
        "(accelerate_configs/ddp.yaml), which keeps a full quantized model on each GPU"
    )


def _refuse_outside_4bit_layers(recipe: Recipe) -> None:
    """Refuse with BackboneError what cannot be trained with 4-bit weights in shards.

    DoRA reads the quantized weights when it is attached, before they are quantized and sharded.
    """
    adapter, under = recipe.adapter, f"(got {recipe.backbone.quantization} under FSDP). {DDP_FIX}"
    if adapter.options.get("use_dora"):
        raise BackboneError(
            "adapter.options.use_dora: DoRA reads the quantized weights when it is attached, "
            f"before they are quantized and sharded {under}, or leave the option out"
        )
    named = [f"options.{name}" for name in TRAINED_IN_FULL if adapter.options.get(name)]
    if adapter.method == "trainable_tokens":
        named.append("method: trainable_tokens")
    if named:
        raise BackboneError(
            f"adapter.{named[0]}: trains weights outside of the layers in 4 bits that are sharded "
            f"{under}"
        )


def require_weights_on_process_device(context: PreflightContext) -> None:
    """Refuse with BackboneError if weights are on the device of another process."""
    if context.launch.sharded:
        return  # loaded to main memory, to be sharded by the trainer
    backbone = context.loaded_backbone
    expected = process_state().device
    devices = {parameter.device for parameter in backbone.model.parameters()}
    wrong = sorted(str(device) for device in devices if not _same_device(device, expected))
    if wrong:
        raise BackboneError(
            f"backbone.model: weights are on {', '.join(wrong)}, but this process computes on "
            f"{expected}. Fix: load the backbone with `lora_kit.backbone.load.load`, which selects "
            "the device by local rank"
        )


def _same_device(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def refuse_retention_when_sharded(context: PreflightContext) -> None:
    """Refuse with TrainingError retention methods and teachers when weights are sharded.

    Both need a full model in each process.
    """
    launch, retention = context.launch, context.recipe.retention
    if not launch.partitioned:
        return
    if context.recipe.training.distillation:
        raise TrainingError(
            "training.distillation: each process needs the full teacher, which FSDP and DeepSpeed "
            f"would shard. {DDP_FIX}"
        )
    # The entropy is that of the trained model alone; an initialisation has a check of its own.
    compared = [n for n in retention.requested if n not in ("entropy_weighting", "corda")]
    for name in compared:
        raise TrainingError(
            f"retention.{name}: comparing the adapter with the base needs the full model in each "
            f"process, which FSDP and DeepSpeed shard. {DDP_FIX}, or replace this section by "
            "data.replay"
        )


def refuse_distributed_head(context: PreflightContext) -> None:
    """Refuse with TrainingError to shard a new output head, or to train it alone in parallel.

    Sharding is refused for every model without an output head of its own, several processes only
    for `adapter.method: head`.
    """
    launch, recipe = context.launch, context.recipe
    if launch.partitioned:
        raise TrainingError(
            f"training.objective: {recipe.training.objective} keeps the full head in each process, "
            f"which FSDP and DeepSpeed would shard. {DDP_FIX}"
        )
    if recipe.adapter.method == "head" and launch.processes > 1:
        raise TrainingError(
            "adapter.method: head trains a few thousand weights on precomputed features in one "
            f"process (got {launch.processes} processes). Fix: start lora-kit without a launcher"
        )


def require_full_gradients(context: PreflightContext) -> None:
    """Refuse with TrainingError methods that read gradients which a launch shards or consumes.

    These methods change gradients between the backward pass and the optimizer step.
    """
    launch, recipe = context.launch, context.recipe
    requested = {
        "training.gradual_unfreezing_steps": recipe.training.gradual_unfreezing_steps is not None,
        "adapter.method: adalora": recipe.adapter.method == "adalora",
        "training.gradient_conflict": recipe.training.gradient_conflict is not None,
    }
    if recipe.training.gradient_conflict is not None and launch.processes > 1:
        raise TrainingError(
            "training.gradient_conflict: compares the gradients of the sources in one process "
            f"(got {launch.processes} processes). Fix: start one process, or leave the field out"
        )
    for field, is_requested in requested.items():
        if is_requested and launch.partitioned:
            raise TrainingError(
                f"{field} needs full gradients before each optimizer step, which FSDP shards and "
                f"DeepSpeed has consumed by then. {DDP_FIX}"
            )


def refuse_sharded_virtual_tokens(context: PreflightContext) -> None:
    """Refuse with TrainingError to encode virtual tokens with sharded weights."""
    launch, method = context.launch, context.recipe.adapter.method
    if launch.partitioned:
        raise TrainingError(
            f"adapter.method: {method}: its virtual tokens go through the backbone in a separate "
            f"forward pass, for which FSDP and DeepSpeed gather no weights. {DDP_FIX}"
        )


def require_available_acceleration(context: PreflightContext) -> None:
    """Refuse with TrainingError options of `training` that lack a package, device or launch."""
    backbone = context.backbone
    model_type = str(backbone.model.config.model_type) if backbone else ""
    # A plan for other machines is made without their devices and packages.
    device = process_state().device if context.launch == current_launch() else None
    quantized = context.recipe.backbone.quantization != "none"
    require_acceleration(context.recipe.training, context.launch, device, model_type, quantized)


def refuse_partitioned_objective(context: PreflightContext) -> None:
    """Refuse with TrainingError to train on judged or generated answers with sharded state."""
    objective = context.recipe.training.objective
    if objective in (*PREFERENCE, *ON_POLICY) and context.launch.partitioned:
        raise TrainingError(
            f"training.objective: {objective}: the number of forward passes of a step, of the "
            "policy and its reference or of sampling, differs between processes, which FSDP and "
            f"DeepSpeed run in lockstep. {DDP_FIX}"
        )


def require_equal_shares(context: PreflightContext) -> None:
    """Refuse with TrainingError a step of prompts that the processes cannot share equally."""
    answers_per_process(context.recipe, context.launch.processes)
