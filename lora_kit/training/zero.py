"""Optimizer state that DeepSpeed's ZeRO divides over the processes: in full and back.

Under ZeRO each process holds a share of the float32 copies of the trained parameters and of their
moments (Rajbhandari et al. 2020, arXiv:1910.02054, section 5). Checkpoints hold full tensors, so
that any number of processes and any launcher can resume them.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper

from lora_kit.runtime.errors import TrainingError

State = dict[int, dict[str, Any]]


def has_zero_state(optimizer: Any) -> bool:
    """Return true if DeepSpeed holds the optimizer's state."""
    return isinstance(optimizer, DeepSpeedOptimizerWrapper)


def require_full_state(optimizer: DeepSpeedOptimizerWrapper) -> None:
    """Refuse an optimizer of DeepSpeed whose state cannot be written in full.

    Raises:
        TrainingError: without ZeRO, or with moments on a disk.
    """
    zero = optimizer.optimizer
    if getattr(zero, "swap_optimizer", False) or not _shares(zero):
        raise TrainingError(
            "deepspeed_config: DeepSpeed keeps the optimizer's state where no checkpoint can take "
            f"it from (got {type(zero).__name__}). Fix: set zero_stage to 1, 2 or 3, leave out "
            "data_types.grad_accum_dtype and offloading to a disk, or launch with "
            "accelerate_configs/ddp.yaml"
        )


def full_state(optimizer: DeepSpeedOptimizerWrapper) -> dict[str, Any]:
    """Return the state as torch's `Optimizer.state_dict()`, in full tensors; a collective call."""
    from deepspeed.utils import safe_get_full_optimizer_state

    zero = optimizer.optimizer
    # DeepSpeed 0.19 does so after the step of the first group, when others have no state yet.
    _link_state(zero)
    # All shares have the same entries; before the first step there are none.
    entries: dict[str, Any] = next(iter(zero.state.values()), {})
    state: State = {
        index: {
            name: safe_get_full_optimizer_state(parameter, name).cpu()
            if _is_divided(value)
            else value
            for name, value in entries.items()
        }
        for index, parameter in enumerate(_parameters(zero))
    }
    groups, start = [], 0
    for settings, members in zip(zero.param_groups, _sizes(zero), strict=True):
        indices = list(range(start, start + members))
        groups.append({**settings, "params": indices})
        start += members
    return {"state": state, "param_groups": groups}


def load_full_state(optimizer: DeepSpeedOptimizerWrapper, state: dict[str, Any]) -> None:
    """Restore a state of `full_state`, or of another launch's optimizer; a collective call.

    Raises:
        TrainingError: in float16, whose loss scale no checkpoint holds under DeepSpeed.
    """
    zero = optimizer.optimizer
    if zero.dynamic_loss_scale:
        raise TrainingError(
            "backbone.dtype: DeepSpeed's loss scale is in no checkpoint, and steps skipped until "
            "it is found again would change the training (got float16). Fix: resume with "
            "accelerate_configs/ddp.yaml or fsdp2.yaml, or drop --resume"
        )
    for settings, saved in zip(zero.param_groups, state["param_groups"], strict=True):
        settings.update({name: value for name, value in saved.items() if name != "params"})
    entries: State = state["state"]
    if entries:
        _create_state(zero, next(iter(entries.values())))
    for index, parameter in enumerate(_parameters(zero)):
        for name, value in entries.get(index, {}).items():
            if _is_divided(value):
                assign_share(parameter, value, name)


def assign_share(parameter: torch.nn.Parameter, value: torch.Tensor, name: str | None) -> None:
    """Copy this process's share of a full tensor into DeepSpeed's state of a parameter.

    Args:
        parameter: parameter that DeepSpeed manages.
        value: full tensor, of the parameter's full shape.
        name: entry of the optimizer's state; `None` for the parameter's float32 copy.
    """
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if not hasattr(parameter, "ds_id"):
        if name is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, name)
        return
    # DeepSpeed 0.19 divides no full tensor whose size is not a multiple of the processes.
    size: int = cast(Any, parameter).ds_tensor.numel()
    padding = size * dist.get_world_size() - value.numel()
    padded = torch.nn.functional.pad(value.flatten(), (0, padding))
    share = padded.narrow(0, size * dist.get_rank(), size)
    if name is None:
        safe_set_local_fp32_param(parameter, share)
    else:
        safe_set_local_optimizer_state(parameter, share, name)


def _is_divided(value: Any) -> bool:
    """Return true for moments; step counts are numbers or tensors without dimensions."""
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _is_stage_3(zero: Any) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat")


def _shares(zero: Any) -> list[torch.Tensor]:
    """Return this process's float32 shares, by group; those of ZeRO 3 are divided further."""
    name = (
        "fp32_partitioned_groups_flat" if _is_stage_3(zero) else "single_partition_of_fp32_groups"
    )
    shares: list[torch.Tensor] = getattr(zero, name, [])
    return shares


def _groups(zero: Any) -> list[list[torch.nn.Parameter]]:
    """Return the trained parameters of each share."""
    groups: list[list[torch.nn.Parameter]] = (
        zero.fp16_groups if _is_stage_3(zero) else zero.bit16_groups
    )
    return groups


def _parameters(zero: Any) -> list[torch.nn.Parameter]:
    """Return the trained parameters in the order of the optimizer that DeepSpeed was given."""
    return [parameter for group in _groups(zero) for parameter in group]


def _sizes(zero: Any) -> list[int]:
    """Return the number of parameters of each of the optimizer's groups."""
    sizes = [0] * len(zero.param_groups)
    for number, group in enumerate(_groups(zero)):
        sizes[zero.sub_group_to_group_id[number] if _is_stage_3(zero) else number] += len(group)
    return sizes


def _create_state(zero: Any, entries: dict[str, Any]) -> None:
    """Create the state of this process's shares, which DeepSpeed creates in the first step."""
    settings = zero.param_groups[0]
    # These steps read their number on the device, others in main memory.
    counts_on_device = settings.get("fused") or settings.get("capturable")
    for share in _shares(zero):
        zero.state[share] = {
            name: torch.zeros_like(share) if _is_divided(value) else deepcopy(value)
            for name, value in entries.items()
        }
        for name, value in zero.state[share].items():
            if counts_on_device and isinstance(value, torch.Tensor):
                zero.state[share][name] = value.to(share.device)
    _link_state(zero)


def _link_state(zero: Any) -> None:
    """Let the parameters of ZeRO 1 and 2 know where their moments lie."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if _is_stage_3(zero) or not zero.state:
        return
    for group, share in zip(_groups(zero), _shares(zero), strict=True):
        lazy_init_hp_params_optimizer_state(group, share, zero.state)
