"""Scale an adapter's effect: `lora_B` times a scale, in all blocks or in a third of them.

LoRA adds `scaling * B @ A` to a weight (Hu et al. 2021, arXiv:2106.09685), which is linear in B:
half of B is half of the update, with rsLoRA too, and 0 is the base. Before it is scaled, an adapter
may have its intruder dimensions reduced, see `intruders`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lora_kit.adapter.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kit.adapter.saved_configuration import plain_lora_problem
from lora_kit.adapter.weights import require_sound_weights
from lora_kit.backbone.blocks import block_number
from lora_kit.runtime.errors import AdapterError, RecipeError
from lora_kit.runtime.files import read_json

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25)
THIRDS = ("early", "middle", "late")
SCALED = ("lora_B", "lora_embedding_B")
FACTORS = ("lora_A", "lora_embedding_A", *SCALED)
# Values of parameters by name.
ParameterValues = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class AdapterScale:
    """Scales of the three thirds of the decoder blocks; 1 is the adapter as trained.

    Attributes:
        early: scale of the first third.
        middle: scale of the second third.
        late: scale of the last third.
        intruders: factor to which intruder dimensions are kept, before the scales; 1 keeps them.
    """

    early: float
    middle: float
    late: float
    intruders: float = 1.0

    @classmethod
    def uniform(cls, scale: float, intruders: float = 1.0) -> AdapterScale:
        """Return the same scale for all blocks."""
        return cls(scale, scale, scale, intruders)

    @property
    def parts(self) -> tuple[float, float, float]:
        """Scales of the thirds, in the order of the blocks."""
        return self.early, self.middle, self.late

    @property
    def is_uniform(self) -> bool:
        """True if all blocks have the same scale."""
        return len(set(self.parts)) == 1

    @property
    def name(self) -> str:
        """Name such as `0.5`, `0.5, intruders 0`, or `early 0.5` with the other thirds at 1."""
        if self.is_uniform:
            names = [f"{self.early:g}"]
        else:
            named = zip(THIRDS, self.parts, strict=True)
            names = [f"{third} {scale:g}" for third, scale in named if scale != 1]
        if self.intruders != 1:
            names.append(f"intruders {self.intruders:g}")
        return ", ".join(names)


TRAINED = AdapterScale.uniform(1.0)


def candidate_scales(
    scales: Sequence[float], by_layer: bool, intruders: Sequence[float] = ()
) -> tuple[AdapterScale, ...]:
    """Return the scales to try, the weakest first, always with the adapter as trained.

    By layer, each third is also tried at each scale, with the other thirds at 1: three times as
    many candidates, not their cube. Each factor of the intruder dimensions is tried at each uniform
    scale, after the scales that keep them.

    Args:
        scales: uniform scales. 0 is the base, which is measured anyway; a third may be at 0.
        by_layer: if true, scale the thirds too.
        intruders: factors to which intruder dimensions are kept; 1 is always tried.

    Raises:
        RecipeError: if a scale is negative or not finite.
    """
    for scale in scales:
        if not math.isfinite(scale) or scale < 0:
            raise RecipeError(
                f"--scales: must be finite and not negative (got {scale:g}). Fix: give scales such "
                "as 0.25,0.5,1; 0 is the base and 1 the adapter as trained"
            )
    ordered = sorted({*scales, 1.0})
    candidates = [AdapterScale.uniform(scale) for scale in ordered if scale > 0]
    if by_layer:
        others = [scale for scale in ordered if scale != 1]
        candidates += [AdapterScale(scale, 1.0, 1.0) for scale in others]
        candidates += [AdapterScale(1.0, scale, 1.0) for scale in others]
        candidates += [AdapterScale(1.0, 1.0, scale) for scale in others]
    for factor in sorted({*intruders} - {1.0}, reverse=True):
        candidates += [AdapterScale.uniform(scale, factor) for scale in ordered if scale > 0]
    return tuple(candidates)


@contextmanager
def scaled_adapter(
    model: Any, scale: AdapterScale, reduced: Mapping[float, ParameterValues] | None = None
) -> Iterator[Any]:
    """Yield the model with its adapter scaled, and restore the adapter bit for bit on exit.

    Args:
        model: backbone with a LoRA adapter attached.
        scale: scales to apply.
        reduced: values of the parameters at each factor of the intruder dimensions; needed for
            scales that do not keep them.

    Raises:
        AdapterError: if the scale is not uniform and the model cannot be split into thirds.
    """
    blocks = 0 if scale.is_uniform else require_thirds(model)
    values = {} if scale.intruders == 1 else (reduced or {})[scale.intruders]
    named = model.named_parameters()
    factors = [(name, p) for name, p in named if _is_scaled(name) or name in values]
    before = [parameter.data for _, parameter in factors]
    try:
        for name, parameter in factors:
            value = values.get(name, parameter.data)
            if _is_scaled(name):
                third = 0 if scale.is_uniform else 3 * (block_number(name) or 0) // blocks
                value = value * scale.parts[third]
            parameter.data = value
        yield model
    finally:
        for (_, parameter), data in zip(factors, before, strict=True):
            parameter.data = data


def _is_scaled(name: str) -> bool:
    return not set(SCALED).isdisjoint(name.split("."))


def require_thirds(model: Any) -> int:
    """Return the number of decoder blocks of a model that can be scaled by thirds.

    Raises:
        AdapterError: if the model has fewer than three blocks, or the adapter changes a module
            outside of them.
    """
    blocks = int(model.config.get_text_config().num_hidden_layers)
    if blocks < len(THIRDS):
        raise AdapterError(
            f"--by-layer: too few decoder blocks for three thirds (got {blocks}). Fix: drop "
            "--by-layer"
        )
    for name, _ in model.named_parameters():
        block = block_number(name)
        if _is_scaled(name) and (block is None or block >= blocks):
            raise AdapterError(
                f"--by-layer: the adapter changes a module that is in none of the {blocks} decoder "
                f"blocks (got {name}). Fix: drop --by-layer"
            )
    return blocks


def require_linear(adapter: Path) -> None:
    """Refuse an adapter whose effect is not linear in `lora_B`.

    Args:
        adapter: directory of the adapter.

    Raises:
        AdapterError: if the adapter is more than LoRA or rsLoRA, naming the option.
    """
    config = read_json(adapter / ADAPTER_CONFIG, AdapterError)
    if problem := plain_lora_problem(config):
        raise AdapterError(
            f"{adapter / ADAPTER_CONFIG}: {problem}. Fix: rescale only plain LoRA and rsLoRA; "
            "train without this option"
        )
    require_sound_weights(adapter, AdapterError)
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        others = [n for n in file.keys() if set(FACTORS).isdisjoint(n.split("."))]  # noqa: SIM118
    if others:
        raise AdapterError(
            f"{adapter / ADAPTER_WEIGHTS}: {len(others)} tensors are no LoRA factors and would not "
            f"be scaled (got {others[0]} first). Fix: train without them to use rescale"
        )
