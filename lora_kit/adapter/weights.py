"""Weights of a saved adapter: refuse files that PEFT reads in part, or not as meant."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kit.runtime.errors import LoraKitError

# Parts that wrappers of a model add to the names of its parameters, with the wrapper. DDP's
# `module.` counts at the front only, where no model of transformers has it.
WRAPPER_PARTS = {
    "_orig_mod.": "a compiled model",
    "_fsdp_wrapped_module.": "a model sharded by FSDP",
    "_checkpoint_wrapped_module.": "a model with activation checkpointing",
}
DDP_PART = "module."
DDP = re.compile(r"(base_model\.(model\.)?)?module\.")
PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")


def require_weight_file(directory: Path, error: type[LoraKitError]) -> None:
    """Refuse an adapter directory without `adapter_model.safetensors`.

    Args:
        directory: directory of the adapter.
        error: class of the error.

    Raises:
        error: naming the file that is there instead, and the remedy.
    """
    if (directory / ADAPTER_WEIGHTS).is_file():
        return
    pickled = [name for name in PICKLES if (directory / name).is_file()]
    if pickled:
        raise error(
            f"{directory}: no {ADAPTER_WEIGHTS}; pickles can contain code and are not loaded (got "
            f"{pickled[0]}). Fix: save the adapter with save_pretrained and "
            "safe_serialization=True, where you trust the file"
        )
    shards = sorted(directory.glob("adapter_model*-of-*.safetensors"))
    if shards:
        raise error(
            f"{directory}: no {ADAPTER_WEIGHTS}; PEFT reads an adapter from one file (got "
            f"{len(shards)} shards, the first: {shards[0].name}). Fix: join them into "
            f"{ADAPTER_WEIGHTS}"
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    found = f" (got {others[0]})" if others else ""
    raise error(
        f"{directory}: no {ADAPTER_WEIGHTS}{found}. Fix: name an adapter directory, with "
        f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} as written by PEFT's save_pretrained"
    )


def require_sound_weights(directory: Path, error: type[LoraKitError]) -> None:
    """Refuse adapter weights that are damaged, empty, wrongly named, not numbers or not finite.

    Args:
        directory: directory of the adapter.
        error: class of the error.

    Raises:
        error: naming the file, the tensor and the remedy.
    """
    require_weight_file(directory, error)
    path = directory / ADAPTER_WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            require_plain_names(names, path, error)
            for name in names:
                _require_sound_tensor(file.get_tensor(name), name, path, error)
    except (OSError, SafetensorError, RuntimeError, KeyError) as problem:
        raise error(
            f"{path}: cannot be read (got {problem}, {path.stat().st_size:,} bytes). Fix: copy or "
            "save the adapter again"
        ) from problem


def require_plain_names(names: Collection[str], path: Path, error: type[LoraKitError]) -> None:
    """Refuse an empty file, and names that a wrapper of the model has changed.

    Args:
        names: names of the tensors.
        path: file of the weights.
        error: class of the error.

    Raises:
        error: naming the first tensor, and the part of its name to remove.
    """
    if not names:
        raise error(
            f"{path}: holds no tensor, so nothing would be adapted. Fix: save the adapter again; "
            "a training with DeepSpeed or FSDP has to gather the weights first"
        )
    for name in sorted(names):
        wrapped = [part for part in WRAPPER_PARTS if part in name]
        part = wrapped[0] if wrapped else DDP_PART if DDP.match(name) else ""
        if part:
            origin = WRAPPER_PARTS.get(part, "a model wrapped by DistributedDataParallel")
            raise error(
                f"{path}: {name}: the adapter was saved from {origin}: take `{part}` out of the "
                "names. Fix: rename the tensors, or save the unwrapped model "
                "(accelerate's unwrap_model)"
            )


def _require_sound_tensor(
    tensor: torch.Tensor, name: str, path: Path, error: type[LoraKitError]
) -> None:
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
        # Adapters in float8 carry no scale; torch cannot test them for NaN either.
        tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        raise error(
            f"{path}: tensor has values that are infinite or NaN (got {name}). Fix: train again"
        )
    is_factor = "lora_" in name
    if is_factor and not tensor.is_floating_point():
        raise error(
            f"{path}: {name}: factors of an adapter are floating-point numbers (got "
            f"{str(tensor.dtype).removeprefix('torch.')}). Fix: save the adapter again in float32 "
            "or bfloat16"
        )
    # AdaLoRA may leave a matrix of rank 0, which has two dimensions.
    if tuple(tensor.shape) == (0,):
        raise error(
            f"{path}: {name}: tensor is empty (got shape (0,)). Fix: save the adapter again; a "
            "training with DeepSpeed or FSDP has to gather the weights first"
        )
