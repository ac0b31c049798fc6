"""Compare the experts of merged mixture-of-experts layers one by one.

The experts of a layer are one parameter, (experts, rows, columns), without inputs of its own. Each
expert's matrix is multiplied by the same random vectors before and after the merge. One expert in
many that was not merged, or stands in another's place, is lost in the mean of the distributions,
most of all if the router seldom chooses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from lora_kit.merging.meta_model import bare_name
from lora_kit.merging.predictions import expert_output
from lora_kit.merging.tolerances import MergeTolerances

EXPERT_DIMENSIONS = 3
# Divisor for experts of zeros.
SMALLEST = 1e-30


@dataclass(frozen=True)
class ExpertComparison:
    """Comparison of every expert of the parameters that an adapter changes.

    Experts are named as `model.layers.3.mlp.experts.down_proj[5]`.

    Attributes:
        compared: number of experts, of each parameter.
        changed: number of these that the adapter changes.
        below_rounding: number of these whose change is far below the rounding of the stored dtype,
            so that the files cannot show it.
        least_kept: lowest share of the adapter's effect that a changed expert keeps; `None` if none
            is changed.
        least_kept_expert: name of that expert.
        median_kept: median of that share over the changed experts.
        most_kept: highest such share.
        most_kept_expert: name of that expert.
        largest_error: largest distance of an expert's outputs from those of base + adapter, as a
            share of their norm.
        largest_error_expert: name of that expert.
        wrong: names of the experts outside the tolerances.
    """

    compared: int
    changed: int
    below_rounding: int
    least_kept: float | None
    least_kept_expert: str
    median_kept: float | None
    most_kept: float | None
    most_kept_expert: str
    largest_error: float
    largest_error_expert: str
    wrong: tuple[str, ...]

    def describe(self) -> str:
        """Return the numbers as part of a line."""
        if self.least_kept is None or self.most_kept is None:
            kept = "the adapter changes none"
        else:
            kept = (
                f"{self.changed} changed by the adapter, which keep {self.least_kept:.1%} to "
                f"{self.most_kept:.1%} of its effect"
            )
        lost = f", {self.below_rounding} of them below rounding" if self.below_rounding else ""
        return (
            f"{self.compared} experts compared, {kept}{lost}; worst: {self.largest_error_expert}, "
            f"{self.largest_error:.1e} off"
        )


@dataclass(frozen=True)
class _Expert:
    """Numbers of one expert: effect and error are shares of the norm of its outputs."""

    name: str
    effect: float
    error: float
    kept: float

    def is_resolved(self, tolerances: MergeTolerances) -> bool:
        return self.effect > tolerances.below_rounding

    def is_wrong(self, tolerances: MergeTolerances) -> bool:
        low, high = tolerances.kept
        is_kept = not self.is_resolved(tolerances) or low <= self.kept <= high
        return not (is_kept and self.error <= tolerances.expert_error)


def adapted_experts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and PEFT layer of each parameter with experts that an adapter changes.

    Names are those of the model without an adapter.
    """
    from peft.tuners.lora import ParamWrapper

    for full, module in model.named_modules():
        if isinstance(module, ParamWrapper) and module.get_param().dim() == EXPERT_DIMENSIONS:
            yield f"{bare_name(full)}.{module.parameter_name}", module


def adapted_expert_output(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Multiply inputs by each expert's matrix, with the adapter unless it is disabled.

    Args:
        module: PEFT layer of `adapted_experts`.
        inputs: (trials, columns) float32.

    Returns:
        (experts, trials, rows) float32, on the CPU.
    """
    output = expert_output(module.get_param(), inputs)
    if not module.disable_adapters:
        for adapter in module.active_adapters:
            output += expert_output(module.get_delta_weight(adapter), inputs)
    return output


def compare_experts(
    base: Mapping[str, torch.Tensor],
    adapted: Mapping[str, torch.Tensor],
    merged: Mapping[str, torch.Tensor],
    tolerances: MergeTolerances,
) -> ExpertComparison | None:
    """Compare the experts of a merged model with those of base + adapter.

    Args:
        base: outputs of the base by parameter, (experts, trials, rows) float32.
        adapted: outputs of base + adapter.
        merged: outputs of the merged model.
        tolerances: tolerances of the comparison.

    Returns:
        The comparison; `None` if no parameter with experts is adapted.
    """
    experts = [
        expert
        for name, before in base.items()
        for expert in _experts(name, before, adapted[name], merged[name])
    ]
    if not experts:
        return None
    changed = [expert for expert in experts if expert.effect > 0]
    resolved = [one for one in changed if one.is_resolved(tolerances)] or changed
    least = min(resolved, key=lambda one: one.kept, default=None)
    most = max(resolved, key=lambda one: one.kept, default=None)
    worst = max(experts, key=lambda one: one.error)
    return ExpertComparison(
        compared=len(experts),
        changed=len(changed),
        below_rounding=sum(not one.is_resolved(tolerances) for one in changed),
        least_kept=least.kept if least else None,
        least_kept_expert=least.name if least else "",
        median_kept=median(one.kept for one in changed) if changed else None,
        most_kept=most.kept if most else None,
        most_kept_expert=most.name if most else "",
        largest_error=worst.error,
        largest_error_expert=worst.name,
        wrong=tuple(one.name for one in experts if one.is_wrong(tolerances)),
    )


def _experts(
    name: str, base: torch.Tensor, adapted: torch.Tensor, merged: torch.Tensor
) -> Iterator[_Expert]:
    for number, (before, expected, found) in enumerate(zip(base, adapted, merged, strict=True)):
        effect, change = (expected - before).double(), (found - before).double()
        norm = max(float(expected.double().norm()), SMALLEST)
        energy = float(effect.square().sum())
        yield _Expert(
            name=f"{name}[{number}]",
            effect=energy**0.5 / norm,
            error=float((found - expected).double().norm()) / norm,
            kept=float((effect * change).sum()) / energy if energy > 0 else 1.0,
        )
