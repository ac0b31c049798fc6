"""Devices of a model: that of its inputs, and several GPUs over which its blocks are spread."""

from __future__ import annotations

from typing import Any

import torch

from lora_kit.runtime.errors import BackboneError, LoraKitError
from lora_kit.runtime.launch import current_launch
from lora_kit.runtime.processes import process_state

# Share of a GPU's free memory that weights may take; the rest is for activations and caches.
WEIGHTS_SHARE = 0.85


def input_device(model: Any) -> torch.device:
    """Return the device of a model's inputs: that of its embeddings.

    The outputs of a model over several GPUs are there too: accelerate moves them back.
    """
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    device: torch.device = next((model if embeddings is None else embeddings).parameters()).device
    return device


def require_gpus(gpus: int) -> None:
    """Refuse with BackboneError to spread a model over more GPUs than this machine has.

    Without effect on a machine without GPUs, where models are in main memory.
    """
    present = torch.cuda.device_count()
    if process_state().device.type == "cuda" and gpus > present:
        raise BackboneError(
            f"evaluation.gpus: more than this machine has (got {gpus}, it has {present}). Fix: "
            f"lower it in the recipe (of a finished run: --gpus {present})"
        )


def device_arguments(gpus: int = 1) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that place a model on the devices of this process.

    A model that will be sharded over the processes stays in main memory, mapped from the same files
    by all processes of a machine, since it may be larger than a GPU.

    Args:
        gpus: number of GPUs over which a process that is the only one may spread the blocks.

    Raises:
        BackboneError: if the machine has fewer GPUs.
    """
    state = process_state()
    if state.device.type == "cpu" or current_launch().sharded:
        return {}
    if gpus == 1 or state.num_processes > 1:
        # By local rank: `auto` would put every process of a node on the same devices.
        return {"device_map": {"": state.device}}
    require_gpus(gpus)
    # Bounded: without these numbers, transformers takes all GPUs, and main memory for the rest.
    return {"device_map": "balanced", "max_memory": room_on_gpus(gpus)}


def room_on_gpus(gpus: int) -> dict[int, int]:
    """Return the bytes that weights may take now on each GPU of a model; nothing on a CPU.

    Args:
        gpus: number of GPUs that the model may be spread over; 1 for the process's own.
    """
    device = process_state().device
    if device.type == "cpu":
        return {}
    numbers = [device.index or 0] if gpus == 1 else range(gpus)
    return {n: int(WEIGHTS_SHARE * torch.cuda.mem_get_info(n)[0]) for n in numbers}


def require_on_gpus(
    model: Any, name: str, gpus: int, error: type[LoraKitError] = BackboneError
) -> None:
    """Refuse a model of which transformers left blocks in main memory or on the disk.

    Args:
        model: loaded model.
        name: field or directory of the model, for the message.
        gpus: number of GPUs that it may be spread over.
        error: class of the error.
    """
    places = getattr(model, "hf_device_map", {})
    left = [block for block, place in places.items() if str(place) in ("cpu", "disk")]
    if gpus > 1 and left:
        raise error(
            f"{name}: the weights do not fit on {gpus} GPUs (got {len(left)} of {len(places)} "
            f"modules without a place, the first: {left[0]}). Fix: raise evaluation.gpus or "
            "--gpus, or quantize the backbone"
        )
