"""Weaken the intruder dimensions of an adapter, which go with forgetting.

Shuttleworth et al. 2024 (arXiv:2410.21228): LoRA gives the weight large singular vectors that are
unlike all of the pretrained weight's, and scaling them down restores much of what was forgotten.

PEFT's `reduce_intruder_dimension` computes the same on dense linear layers. It is not called here
because (in PEFT 0.21) it decomposes the stored bytes of 4-bit and 8-bit weights, gives embeddings
and Conv1D layers transposed factors, and repeats all decompositions for each factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from lora_kit.adapter.layer_weight import dequantized_weight
from lora_kit.adapter.peft_methods import DEFAULT_ADAPTER
from lora_kit.runtime.console import meter
from lora_kit.runtime.errors import AdapterError, RecipeError
from lora_kit.runtime.processes import process_state

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

# Defaults of PEFT.
TOP_K, THRESHOLD = 10, 0.5


@dataclass(frozen=True)
class IntruderSearch:
    """Settings of the search for intruder dimensions, and the factors to keep them to.

    Attributes:
        factors: factors to try besides 1, each in [0, 1): 0 takes the dimensions out entirely.
        top_k: number of largest singular vectors of each weight that are searched.
        threshold: largest absolute cosine similarity to the base's singular vectors, exclusive, at
            which a vector is an intruder; in (0, 1].

    Raises:
        RecipeError: if a value is outside of its range, or no factor differs from 1.
    """

    factors: tuple[float, ...]
    top_k: int = TOP_K
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        for factor in self.factors:
            if not 0 <= factor <= 1:  # false for NaN, too
                raise RecipeError(
                    f"--intruders: must be from 0 to 1 (got {factor:g}). Fix: give factors such as "
                    "0.75,0.5,0; 0 takes intruder dimensions out, and 1 is the adapter as trained"
                )
        if not any(factor < 1 for factor in self.factors):
            raise RecipeError(
                "--intruders: 1 is the adapter as trained, which is always tried (got no other "
                "factor). Fix: add factors below 1, or drop --intruders"
            )
        if self.top_k < 1:
            raise RecipeError(
                f"--intruder-top-k: must be at least 1 (got {self.top_k}). Fix: give the number of "
                f"singular vectors to search, such as {TOP_K}"
            )
        if not 0 < self.threshold <= 1:
            raise RecipeError(
                f"--intruder-threshold: must be above 0 and at most 1 (got {self.threshold:g}). "
                f"Fix: give a cosine similarity, such as {THRESHOLD:g}"
            )


@dataclass(frozen=True)
class LayerIntruders:
    """Intruder dimensions of one adapted weight: `left @ right`.

    Attributes:
        left: left singular vectors times singular values, (rows, intruders), float32.
        right: right singular vectors, (intruders, columns), float32.
    """

    left: torch.Tensor
    right: torch.Tensor


@dataclass(frozen=True)
class ReducedAdapter:
    """Intruder dimensions of an adapter, and its factors with them reduced.

    Attributes:
        search: settings of the search.
        intruders: number of intruder dimensions of each layer that has any, by the layer's name.
        searched: number of layers that were searched.
        parameters: values of the changed parameters by name, for each factor below 1.
    """

    search: IntruderSearch
    intruders: Mapping[str, int]
    searched: int
    parameters: Mapping[float, Mapping[str, torch.Tensor]]

    def describe(self) -> str:
        """Return the number of intruder dimensions, and the settings they were found with."""
        count, layers = sum(self.intruders.values()), len(self.intruders)
        return (
            f"{count:,} intruder dimension{'s' * (count != 1)} in {layers} of {self.searched} "
            f"layers (top {self.search.top_k}, cosine similarity below {self.search.threshold:g})"
        )

    def identity(self, factor: float) -> tuple[float, ...]:
        """Return all that the parameters at a factor depend on besides the adapter and the base.

        Empty for 1, where the settings have no effect.
        """
        return () if factor == 1 else (factor, self.search.top_k, self.search.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and settings as JSON."""
        return {
            "dimensions": sum(self.intruders.values()),
            "layers": len(self.intruders),
            "searched_layers": self.searched,
            "top_k": self.search.top_k,
            "threshold": self.search.threshold,
            "by_layer": dict(self.intruders),
        }


@torch.no_grad()
def reduce_intruders(model: Any, search: IntruderSearch) -> ReducedAdapter:
    """Find the intruder dimensions, and compute the adapter's parameters at each factor.

    The model does not change. Two singular value decompositions a layer, which processes share.

    Args:
        model: backbone with a plain LoRA adapter attached.
        search: settings.

    Raises:
        AdapterError: if an adapted weight is not a matrix.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, layer in layers.items():
        base = layer.get_base_layer()
        factors = _parameters(layer).values()
        if not hasattr(base, "weight") or any(factor.ndim != 2 for factor in factors):
            raise AdapterError(
                "--intruders: needs layers whose weight is one matrix (got "
                f"{name}: {type(base).__name__}). Fix: drop --intruders"
            )
    found = _search_all(layers, search)
    parameters: dict[float, dict[str, torch.Tensor]] = {}
    for factor in sorted({one for one in search.factors if one < 1}):
        changed = parameters[factor] = {}
        for name, intruders in found.items():
            for suffix, value in reduced_parameters(layers[name], intruders, factor).items():
                changed[f"{name}.{suffix}"] = value
    counts = {name: len(intruders.right) for name, intruders in found.items()}
    return ReducedAdapter(search, counts, len(layers), parameters)


def _search_all(
    layers: Mapping[str, LoraLayer], search: IntruderSearch
) -> dict[str, LayerIntruders]:
    """Return the intruder dimensions of the layers that have any; the same on all processes."""
    state = process_state()
    own = list(layers.items())[state.process_index :: state.num_processes]
    found: list[tuple[str, LayerIntruders]] = []
    description = "intruder dimensions (layers)"
    with meter(description, len(own), visible=state.is_main_process) as progress:
        for name, layer in own:
            intruders = find_intruders(layer, search.top_k, search.threshold)
            if intruders is not None:
                # Sent to the other processes, whose devices differ.
                found.append((name, LayerIntruders(intruders.left.cpu(), intruders.right.cpu())))
            progress.advance(note=f"{sum(len(one.right) for _, one in found)} found")
    gathered = dict(gather_object(found))
    return {name: gathered[name] for name in layers if name in gathered}


@torch.no_grad()
def find_intruders(layer: LoraLayer, top_k: int, threshold: float) -> LayerIntruders | None:
    """Return the intruder dimensions of a layer's weight with the adapter; `None` without any.

    A left singular vector of `W + scaling * B @ A` among the `top_k` largest is an intruder if its
    absolute cosine similarity to every left singular vector of `W` is below the threshold.

    Args:
        layer: plain LoRA layer; quantized weights are dequantized.
        top_k: number of singular vectors to search.
        threshold: cosine similarity below which a vector is an intruder.
    """
    weight = dequantized_weight(layer)
    left, right = _update(layer)
    base, _, _ = torch.linalg.svd(weight, full_matrices=False)
    vectors, values, right_vectors = torch.linalg.svd(weight + left @ right, full_matrices=False)
    similarity = (vectors[:, :top_k].T @ base).abs().amax(dim=1)
    (numbers,) = torch.where(similarity < threshold)
    if not len(numbers):
        return None
    return LayerIntruders(vectors[:, numbers] * values[numbers], right_vectors[numbers])


@torch.no_grad()
def reduced_parameters(
    layer: LoraLayer, intruders: LayerIntruders, factor: float
) -> dict[str, torch.Tensor]:
    """Return the layer's LoRA factors with its intruder dimensions kept to a factor.

    The update becomes `scaling * B @ A + (factor - 1) * intruders`, cut to the adapter's rank by a
    singular value decomposition, as in the paper. PEFT's `mitigation_lambda` is this factor: its
    code adds `(mitigation_lambda - 1) * intruders`, so that 1 changes nothing and 0 removes them,
    although its docstring says that a higher value subtracts more.

    Args:
        layer: plain LoRA layer.
        intruders: intruder dimensions of the layer's weight.
        factor: share of the intruder dimensions to keep, from 0 to 1.

    Returns:
        Value of each parameter by its name within the layer, in its shape and dtype.
    """
    left, right = _update(layer)
    scaling, rank = layer.scaling[DEFAULT_ADAPTER], layer.r[DEFAULT_ADAPTER]
    # The sum has the rank of its two parts, so that decomposing the small factors is exact.
    left = torch.cat([left, (factor - 1) * intruders.left.to(left.device)], dim=1)
    right = torch.cat([right, intruders.right.to(right.device)])
    left_basis, left_rest = torch.linalg.qr(left)
    right_basis, right_rest = torch.linalg.qr(right.T)
    vectors, values, right_vectors = torch.linalg.svd(left_rest @ right_rest.T / scaling)
    roots = values[:rank].sqrt()
    left = left_basis @ (vectors[:, : len(roots)] * roots)
    right = (roots[:, None] * right_vectors[: len(roots)]) @ right_basis.T
    # A rank above the matrix's own has no more directions.
    missing = rank - len(roots)
    left = torch.nn.functional.pad(left, (0, missing))
    right = torch.nn.functional.pad(right, (0, 0, 0, missing))
    parameters = _parameters(layer)
    # An embedding's rows are tokens, which A reads: its update is the transpose of B @ A.
    pair = (right.T, left.T) if _is_embedding(layer) else (left, right)
    return {
        name: value.to(parameter.dtype).contiguous()
        for (name, parameter), value in zip(parameters.items(), pair, strict=True)
    }


def _is_embedding(layer: LoraLayer) -> bool:
    return DEFAULT_ADAPTER in layer.lora_embedding_B


def _parameters(layer: LoraLayer) -> dict[str, torch.nn.Parameter]:
    """Return B and A of a layer, by their names within it."""
    if _is_embedding(layer):
        b, a = layer.lora_embedding_B[DEFAULT_ADAPTER], layer.lora_embedding_A[DEFAULT_ADAPTER]
        return {
            f"lora_embedding_B.{DEFAULT_ADAPTER}": b,
            f"lora_embedding_A.{DEFAULT_ADAPTER}": a,
        }
    b, a = layer.lora_B[DEFAULT_ADAPTER].weight, layer.lora_A[DEFAULT_ADAPTER].weight
    return {f"lora_B.{DEFAULT_ADAPTER}.weight": b, f"lora_A.{DEFAULT_ADAPTER}.weight": a}


def _update(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the update of a weight as a product (rows, rank) @ (rank, columns), float32."""
    b, a = (parameter.detach().float() for parameter in _parameters(layer).values())
    left, right = (a.T, b.T) if _is_embedding(layer) else (b, a)
    return left * layer.scaling[DEFAULT_ADAPTER], right
