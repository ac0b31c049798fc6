"""Add an adapter's update to a weight: the sum in float32, rounded once."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lora_kit.adapter.peft_methods import DEFAULT_ADAPTER
from lora_kit.runtime.errors import MergeError

# Numbers added at a time: few enough for the CPU cache, enough to keep a thread busy.
CHUNK_NUMBERS = 2**20
_EMPTY = torch.empty(0)
_last = threading.local()

ReadParameter = Callable[[str], torch.Tensor]
ReadRows = Callable[[int, int], torch.Tensor]


def is_plain_lora(layer: Any) -> bool:
    """Return True if the update of a PEFT layer is `scaling * B @ A` and nothing else."""
    from peft.tuners.lora import Linear

    plain = type(layer) is Linear and DEFAULT_ADAPTER not in layer.lora_variant
    return plain and not layer.lora_bias[DEFAULT_ADAPTER]


def add_lora_update(
    name: str, layer: Any, shape: tuple[int, ...], read_rows: ReadRows, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """Yield blocks of rows of `base + scaling * B @ A`, (rows, shape[1]), in `dtype`.

    Reference: Hu et al. 2021, arXiv:2106.09685, section 4.1.

    Args:
        name: parameter name, for error messages.
        layer: PEFT layer with `lora_A` (rank, in) and `lora_B` (out, rank).
        shape: shape of the base weight, (out, in), or (in, out) where the layer stores it
            transposed.
        read_rows: callable that returns the rows from a first to before a last one of the base
            weight.
        dtype: dtype of the result.

    Raises:
        MergeError: if the shapes differ, or a value is not finite.
    """
    a, b = layer.lora_A[DEFAULT_ADAPTER].weight.data, layer.lora_B[DEFAULT_ADAPTER].weight.data
    update = _product(b.float(), a.float())
    if layer.fan_in_fan_out:
        update = update.T
    if update.shape != shape:
        raise MergeError(
            f"{name}: update does not fit the backbone's weight (got {tuple(update.shape)} for "
            f"{shape}). Fix: merge into the backbone that the adapter was trained on"
        )
    scaling = layer.scaling[DEFAULT_ADAPTER]
    # Multiplication by a power of two does not round, so that a fused add gives the same numbers.
    is_exact = math.frexp(scaling)[0] == 0.5
    count = max(CHUNK_NUMBERS // shape[1], 1)
    for first in range(0, shape[0], count):
        last = min(first + count, shape[0])
        # Copied even if float32: the rows may belong to a tensor that is needed again.
        total = read_rows(first, last).to(torch.float32, copy=True)
        rows = update[first:last]
        total.add_(rows, alpha=scaling) if is_exact else total.add_(rows.mul_(scaling))
        rounded = total.to(dtype)
        require_finite(name, total if dtype != torch.float16 else rounded)
        yield rounded


def _product(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Return `b @ a` in the memory of the thread's last product.

    Fresh memory pages would take as long as the sum itself.
    """
    count = len(b) * a.shape[1]
    if getattr(_last, "memory", _EMPTY).numel() < count:
        _last.memory = torch.empty(count)
    product: torch.Tensor = _last.memory[:count].view(len(b), a.shape[1])
    return torch.mm(b, a, out=product)


def merge_with_peft(
    name: str, layers: list[Any], read_parameter: ReadParameter, residual_init: str
) -> torch.Tensor:
    """Merge the layers of one parameter with PEFT; real weights exist only during the call.

    Args:
        name: parameter name.
        layers: PEFT layers that change the parameter, the outermost first.
        read_parameter: callable that returns a parameter of the backbone by name.
        residual_init: initialization that replaced the base weight by a residual; empty if none.

    Returns:
        The merged parameter, of the backbone's shape, float32.

    Raises:
        MergeError: if PEFT cannot merge the layers.
    """
    module, parameter = name.rsplit(".", 1)
    base = layers[-1].get_base_layer()
    placeholders = dict(base.named_parameters(recurse=False))
    try:
        for other in placeholders:
            # A method may change the bias with the weight, but no other parameter.
            if other in (parameter, "weight", "bias"):
                real = read_parameter(f"{module}.{other}").float()
                setattr(base, other, torch.nn.Parameter(real, requires_grad=False))
        for layer in reversed(layers):
            if residual_init:
                _subtract_initial_factors(layer, residual_init)
            layer.merge(adapter_names=[DEFAULT_ADAPTER])
        merged: torch.Tensor = getattr(layers[-1].get_base_layer(), parameter).data
        if layers[-1].get_base_layer() is not base:
            # Some methods swap in the trained module; unmerging restores the original one.
            layers[-1].unmerge()
        for layer in layers:
            layer.merged_adapters.clear()
        return merged
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise MergeError(
            f"{name}: PEFT cannot merge this layer (got {type(layers[0]).__name__}: {error}). "
            "Fix: release the adapter unmerged"
        ) from error
    finally:
        for other, placeholder in placeholders.items():
            setattr(base, other, placeholder)


def _subtract_initial_factors(layer: Any, residual_init: str) -> None:
    """Leave the residual in the base weight, as PEFT does before training; keep the factors."""
    trained = [
        (part, part.weight.data)
        for part in (layer.lora_A[DEFAULT_ADAPTER], layer.lora_B[DEFAULT_ADAPTER])
    ]
    if residual_init == "olora":
        layer.olora_init(DEFAULT_ADAPTER)
    else:
        layer.pissa_init(DEFAULT_ADAPTER, residual_init)
    for part, weights in trained:
        part.weight.data = weights


def require_finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor unchanged if all its values are finite.

    Raises:
        MergeError: if a value is infinite or NaN.
    """
    if not math.isfinite(float(tensor.sum(dtype=torch.float32))):
        raise MergeError(
            f"{name}: merged weight has values that are infinite or NaN (got dtype {tensor.dtype})."
            " Fix: check adapter and backbone for such values, or set merge.dtype to float32"
        )
    return tensor
