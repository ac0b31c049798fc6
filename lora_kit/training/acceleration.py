"""Ways to make training faster or smaller: optimizers, compiled blocks, kernels."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lora_kit.adapter.fused_products import fused_products
from lora_kit.backbone.blocks import find_blocks
from lora_kit.modeling.cpu_attention import products_in_backward
from lora_kit.recipe.training import ADAMW, TrainingSpec
from lora_kit.runtime.errors import TrainingError
from lora_kit.runtime.launch import Launch

# Liger's losses compute every logit; ours are computed at supervised positions only.
LIGER = {"cross_entropy": False, "fused_linear_cross_entropy": False}
# Forward passes differ in mode, gradients, adapters and lengths; each combination is compiled once.
COMPILED_VARIANTS = 32


def acceleration_arguments(spec: TrainingSpec) -> dict[str, Any]:
    """Return the arguments of transformers' trainer; those of TRL's only where they are set."""
    arguments: dict[str, Any] = {
        "optim": spec.optim,
        "neftune_noise_alpha": spec.neftune_noise_alpha,
    }
    if spec.liger:
        arguments |= {"use_liger_kernel": True, "liger_kernel_config": LIGER}
    if spec.activation_offloading:
        arguments["activation_offloading"] = True
    return arguments


def compile_blocks(model: torch.nn.Module) -> None:
    """Compile each transformer block in place; names of modules and weights stay.

    All blocks share their code, so that a kind of block is compiled once, not once a block.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, COMPILED_VARIANTS)
    for block in find_blocks(model)[1]:
        # Lengths differ from pass to pass.
        block.compile(dynamic=True)


@contextmanager
def faster_on_cpu(model: Any, launch: Launch, compiled: bool = False) -> Iterator[None]:
    """Train with faster products on a CPU until exit; results are the same within rounding.

    Args:
        model: backbone with its adapter.
        launch: launch of the training; under FSDP and DeepSpeed nothing changes, since their hooks
            bring the weights of a module only when it is called.
        compiled: true if the blocks are compiled, whose kernels are their own.
    """
    if launch.partitioned or compiled:
        yield
        return
    with products_in_backward(model), fused_products(model):
        yield


def require_acceleration(
    spec: TrainingSpec,
    launch: Launch,
    device: torch.device | None,
    model_type: str = "",
    quantized: bool = False,
) -> None:
    """Refuse options that lack a package, a device or a test under a launch.

    Args:
        spec: the recipe's section `training`.
        launch: launch of the training.
        device: device of the training; `None` if it is planned for another machine.
        model_type: type of the backbone's configuration; empty if it is not known yet.
        quantized: true for a backbone in 4 or 8 bits.

    Raises:
        TrainingError: naming the field and the remedy.
    """
    if launch.partitioned and spec.optim not in ADAMW:
        raise TrainingError(
            f"training.optim: FSDP and DeepSpeed shard the state of AdamW only (got {spec.optim}). "
            "Fix: remove it, or launch with accelerate_configs/ddp.yaml"
        )
    if launch.partitioned and spec.compile:
        raise TrainingError(
            "training.compile: blocks are not compiled under FSDP and DeepSpeed. Fix: remove it, "
            "or launch with accelerate_configs/ddp.yaml"
        )
    if spec.compile and quantized and device is not None and device.type == "cpu":
        # Without a kernel, bitsandbytes unpacks 4 bits in many small operations: more than four
        # minutes for a model of three tiny blocks.
        raise TrainingError(
            "training.compile: blocks in 4 or 8 bits take too long to compile on a CPU. Fix: "
            "remove it, or set backbone.quantization: none"
        )
    if device is not None:
        _require_on_device(spec, device, model_type)


def _require_on_device(spec: TrainingSpec, device: torch.device, model_type: str) -> None:
    on_gpu = device.type == "cuda"
    if spec.optim.startswith("paged_") and not on_gpu:
        raise TrainingError(
            f"training.optim: paged state needs a GPU (got {spec.optim} on {device.type}). Fix: "
            f"set training.optim: {spec.optim.removeprefix('paged_')}"
        )
    if spec.activation_offloading and not on_gpu:
        raise TrainingError(
            f"training.activation_offloading: moves activations from a GPU to main memory (got "
            f"device {device.type}). Fix: remove it, or set training.gradient_checkpointing: true"
        )
    if spec.compile:
        _require_compiler(on_gpu)
    if spec.liger:
        _require_liger(on_gpu, model_type)


def _require_compiler(on_gpu: bool) -> None:
    if on_gpu and importlib.util.find_spec("triton") is None:
        raise TrainingError(
            "training.compile: needs the package triton on a GPU (not installed). Fix: pip install "
            "triton, or remove it"
        )
    if not on_gpu:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise TrainingError(
                "training.compile: needs a C++ compiler on a CPU (got none). Fix: install g++, or "
                "remove it"
            ) from error


def _require_liger(on_gpu: bool, model_type: str) -> None:
    if not on_gpu:
        raise TrainingError(
            "training.liger: Liger's kernels run on GPUs only (got device cpu). Fix: remove it"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise TrainingError(
            "training.liger: needs the package liger-kernel (not installed). Fix: pip install "
            "'lora-kit[liger]', or remove it"
        )
    patches: Any = importlib.import_module("liger_kernel.transformers.monkey_patch")
    if model_type and model_type not in patches.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise TrainingError(
            f"training.liger: has no kernels for this model (got {model_type}). Fix: remove it"
        )
