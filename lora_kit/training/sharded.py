"""Trained weights that are divided over the processes, and whole again.

Under FSDP2 every parameter is a `DTensor` of which each process holds a part (torch.distributed's
`fully_shard`; Zhao et al. 2023, arXiv:2304.11277); under ZeRO-3 it is empty until DeepSpeed gathers
it (Rajbhandari et al. 2020, arXiv:1910.02054). What is written is whole, so that it can be read by
any number of processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether processes have to make their forward passes together."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def shard_again(model: torch.nn.Module) -> None:
    """Let go of what was gathered for a pass without a backward one: rounded copies of weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shape_of(parameter: torch.Tensor) -> tuple[int, ...]:
    """Of all of it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU of all of it; every process has to ask at the same place."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().detach().to("cpu", copy=True).contiguous()
    if hasattr(tensor, "ds_id"):
        from deepspeed.zero import GatheredParameters  # type: ignore[import-not-found,unused-ignore]

        with GatheredParameters([tensor]):
            return tensor.detach().to("cpu", copy=True).contiguous()
    return tensor.detach().to("cpu", copy=True).contiguous()


@torch.no_grad()
def put_back(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Give a parameter, or this process's part of it, the values of a whole tensor."""
    if hasattr(parameter, "ds_id"):
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)
        return
    parameter.copy_(divided_as(parameter, value))


def divided_as(parameter: torch.Tensor, value: Any) -> Any:
    """A whole tensor divided as a parameter is, if it is one of the parameter's shape."""
    alike = isinstance(value, torch.Tensor) and value.shape == parameter.shape
    if not (alike and isinstance(parameter, DTensor)):
        return value
    on_device = value.to(parameter.device_mesh.device_type)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements)
