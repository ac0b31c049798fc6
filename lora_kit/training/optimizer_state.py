"""State of an optimizer as tensors for safetensors and values for JSON, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from lora_kit.training import zero
from lora_kit.training.sharded import full_tensor, shard_like
from lora_kit.training.trained_weights import Tensors

State = dict[int, dict[str, Any]]


def full_optimizer_state(optimizer: Any) -> tuple[Tensors, dict[str, Any]]:
    """Return an optimizer's state of any launcher, in full; a collective call.

    Returns:
        Tensors for safetensors, and `values` and `groups` for JSON.
    """
    state = zero.full_state(optimizer) if zero.has_zero_state(optimizer) else optimizer.state_dict()
    tensors, values = split_state(state["state"])
    return tensors, {"values": values, "groups": state["param_groups"]}


def restore_optimizer_state(optimizer: Any, saved: dict[str, Any], tensors: Tensors) -> None:
    """Restore a state of `full_optimizer_state`, of any launcher and number of processes."""
    state = join_state({**tensors, **saved["values"]})
    for group in saved["groups"]:
        restore_tuples(group)
    if zero.has_zero_state(optimizer):
        zero.load_full_state(optimizer, {"state": state, "param_groups": saved["groups"]})
        return
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = {
        index: {name: shard_like(trained[index], value) for name, value in part.items()}
        for index, part in state.items()
    }
    optimizer.load_state_dict({"state": sharded, "param_groups": saved["groups"]})


def split_state(state: State) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors and the other values of an optimizer's state; a collective call.

    Keys are `index.name`, with the index of the parameter; `index.outer.name` for the quantized
    state of bitsandbytes, which is a mapping of its own.
    """
    flat = {f"{n}.{name}": value for n, part in state.items() for name, value in _flat(part)}
    tensors = {
        name: full_tensor(value) for name, value in flat.items() if isinstance(value, torch.Tensor)
    }
    return tensors, {name: value for name, value in flat.items() if name not in tensors}


def _flat(part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in part.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", one) for inner, one in value.items())
        else:
            yield name, value


def join_state(flat: Mapping[str, Any]) -> State:
    """Return an optimizer's state from the entries of `split_state`, by key."""
    state: State = {}
    for key, value in flat.items():
        index, *outer, name = key.split(".")
        part = state.setdefault(int(index), {})
        for one in outer:
            part = part.setdefault(one, {})
        part[name] = value
    return state


def restore_tuples(group: dict[str, Any]) -> None:
    """Turn the lists of a parameter group from JSON, which has no tuples, into tuples in place."""
    for name in ("betas", "eps"):
        if isinstance(group.get(name), list):
            group[name] = tuple(group[name])
