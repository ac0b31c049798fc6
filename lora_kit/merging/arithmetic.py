"""A weight and what an adapter's layer makes of it: the sum in float32, rounded once."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lora_kit.runtime.errors import MergeError

# PEFT's name of an adapter that is given none.
ADAPTER = "default"
# Numbers that are added up at a time: few enough for a cache, enough to keep a thread busy.
CHUNK_NUMBERS = 2**20
_EMPTY = torch.empty(0)
_last = threading.local()

Read = Callable[[str], torch.Tensor]
Rows = Callable[[int, int], torch.Tensor]


def is_plain(layer: Any) -> bool:
    """Whether the update is `scaling * B @ A` and nothing else."""
    from peft.tuners.lora import Linear

    plain = type(layer) is Linear and ADAPTER not in layer.lora_variant
    return plain and not layer.lora_bias[ADAPTER]


def plain_sums(
    name: str, layer: Any, shape: tuple[int, ...], rows: Rows, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """`base + scaling * B @ A` (Hu et al. 2021, arXiv:2106.09685, section 4.1), row by row.

    Args:
        name: for the error.
        layer: PEFT's, with `lora_A` (rank, in) and `lora_B` (out, rank).
        shape: of the base, (out, in), or (in, out) where the layer stores it so.
        rows: gives some rows of the base.
        dtype: of the result.
    """
    a, b = layer.lora_A[ADAPTER].weight.data, layer.lora_B[ADAPTER].weight.data
    total = _product(b.float(), a.float())
    if layer.fan_in_fan_out:
        total = total.T
    if total.shape != shape:
        raise MergeError(
            f"{name}: the adapter's update has shape {tuple(total.shape)}, the backbone's weight "
            f"{shape}"
        )
    scaling = layer.scaling[ADAPTER]
    # Times a power of two, nothing is rounded, so that both at once give the same numbers.
    at_once = math.frexp(scaling)[0] == 0.5
    count = max(CHUNK_NUMBERS // shape[1], 1)
    for first in range(0, shape[0], count):
        last = min(first + count, shape[0])
        # A copy even of float32: the rows may be those of a tensor that is needed again.
        exact, some = rows(first, last).to(torch.float32, copy=True), total[first:last]
        exact.add_(some, alpha=scaling) if at_once else exact.add_(some.mul_(scaling))
        rounded = exact.to(dtype)
        finite(name, exact if dtype != torch.float16 else rounded)
        yield rounded


def _product(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """`B @ A` where the thread's last product was: new pages take as long as the sum itself."""
    wanted = len(b) * a.shape[1]
    if getattr(_last, "memory", _EMPTY).numel() < wanted:
        _last.memory = torch.empty(wanted)
    product: torch.Tensor = _last.memory[:wanted].view(len(b), a.shape[1])
    return torch.mm(b, a, out=product)


def merged_by_peft(name: str, layers: list[Any], read: Read, residue: str) -> torch.Tensor:
    """PEFT's own merge of one layer whose weights are there for as long as it takes.

    Returns:
        The parameter `name`, float32.
    """
    module, parameter = name.rsplit(".", 1)
    base = layers[-1].get_base_layer()
    hollow = dict(base.named_parameters(recurse=False))
    try:
        for other in hollow:
            # A method may change the bias with the weight; other parameters it leaves alone.
            if other in (parameter, "weight", "bias"):
                real = read(f"{module}.{other}").float()
                setattr(base, other, torch.nn.Parameter(real, requires_grad=False))
        for layer in reversed(layers):
            if residue:
                _take_residue(layer, residue)
            layer.merge(adapter_names=[ADAPTER])
        merged: torch.Tensor = getattr(layers[-1].get_base_layer(), parameter).data
        if layers[-1].get_base_layer() is not base:
            # Where the trained module takes the place of the other one, it gives it back.
            layers[-1].unmerge()
        for layer in layers:
            layer.merged_adapters.clear()
        return merged
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise MergeError(
            f"{name}: PEFT cannot merge {type(layers[0]).__name__}: {error}"
        ) from error
    finally:
        for other, empty in hollow.items():
            setattr(base, other, empty)


def _take_residue(layer: Any, residue: str) -> None:
    """Leave in the weight what PEFT leaves there before it trains."""
    trained = [(part, part.weight.data) for part in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])]
    if residue == "olora":
        layer.olora_init(ADAPTER)
    else:
        layer.pissa_init(ADAPTER, residue)
    for part, weights in trained:
        part.weight.data = weights


def finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself; raises MergeError if a number in it is infinite or none."""
    if not math.isfinite(float(tensor.sum(dtype=torch.float32))):
        raise MergeError(
            f"{name}: merged, it holds numbers that are infinite or none; look for them in the "
            "adapter and the backbone, or merge into another dtype"
        )
    return tensor
