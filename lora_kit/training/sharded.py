"""Conversion between full tensors and tensors sharded over the processes.

Under FSDP2 every parameter is a `DTensor` of which each process holds a shard (torch.distributed's
`fully_shard`; Zhao et al. 2023, arXiv:2304.11277); under ZeRO-3 a parameter is empty until
DeepSpeed gathers it (Rajbhandari et al. 2020, arXiv:1910.02054). Under all stages of ZeRO the
processes share out the float32 copies of the trained parameters; those in the model are rounded to
the dtype of the backbone. Files hold full tensors, so that any number of processes can read them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from lora_kit.runtime.processes import process_state
from lora_kit.training.zero import assign_share


def is_sharded(model: torch.nn.Module) -> bool:
    """Return true if any parameter is sharded, so that forward passes are collective calls."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def compute_device(model: Any) -> torch.device:
    """Return the device of a model's inputs; shards may lie in main memory."""
    device: torch.device = process_state().device if is_sharded(model) else model.device
    return device


def reshard(model: torch.nn.Module) -> None:
    """Free the parameters gathered for a forward pass without a backward pass.

    A launch with `fsdp_reshard_after_forward: false` keeps them for a backward pass, which is not
    to come here: as long as they are gathered they take memory, and they are no `DTensor`.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a parameter over all processes."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a full tensor on the CPU; a collective call.

    The dtype is that of the tensor; float32 for a trained parameter that DeepSpeed manages.
    """
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    elif _is_managed(tensor):
        from deepspeed.utils import safe_get_full_fp32_param

        tensor = safe_get_full_fp32_param(tensor)
    return tensor.detach().to("cpu", copy=True).contiguous()


@torch.no_grad()
def assign_full_tensor(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Copy a full tensor into a parameter, or this process's shard of it; a collective call."""
    if hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)
    else:
        parameter.copy_(shard_like(parameter, value))
    if _is_managed(parameter):
        assign_share(parameter, value, None)


def _is_managed(tensor: torch.Tensor) -> bool:
    """Return true if DeepSpeed holds a float32 copy of the parameter."""
    return hasattr(tensor, "ds_id") or hasattr(tensor, "get_full_hp_param")


def shard_like(parameter: torch.Tensor, value: Any) -> Any:
    """Shard a full tensor like a parameter; return other values and shapes unchanged.

    Args:
        parameter: parameter, sharded or not.
        value: entry of the optimizer's state: a tensor of the parameter's full shape, or another
            value.
    """
    alike = isinstance(value, torch.Tensor) and value.shape == parameter.shape
    if not (alike and isinstance(parameter, DTensor)):
        return value
    on_device = value.to(parameter.device_mesh.device_type)
    shard = distribute_tensor(on_device, parameter.device_mesh, parameter.placements)
    # Shards that FSDP offloads are in main memory.
    return shard.to(parameter.device)
