"""A LoRA adapter on disk, read for merging: which module gets which update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from lora_kit.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kit.errors import MergeError
from lora_kit.files import read_json

PREFIX = "base_model.model."
# Options of LoRA whose update is not `scaling * B @ A` added to the weight.
REFUSED = {
    "use_dora": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "bias": "none",
    "lora_bias": False,
    "use_qalora": False,
    "alora_invocation_tokens": None,
    "target_parameters": None,
}


@dataclass(frozen=True)
class LoraUpdate:
    """The two factors of one module's update."""

    scaling: float
    transposed: bool
    path: Path
    key_a: str
    key_b: str

    def delta(self) -> torch.Tensor:
        """`scaling * B @ A` (Hu et al. 2021, arXiv:2106.09685, section 4.1).

        Returns:
            (out, in) float32, (in, out) where the layer stores its weight transposed.
        """
        with safe_open(self.path, framework="pt") as file:
            a = file.get_tensor(self.key_a).float()
            b = file.get_tensor(self.key_b).float()
        update: torch.Tensor = (b @ a) * self.scaling
        return update.T if self.transposed else update


def read_updates(directory: Path) -> Mapping[str, LoraUpdate]:
    """The updates of an adapter directory by the name of the module.

    Raises:
        MergeError: if the adapter is no plain LoRA, or a tensor in it cannot be placed.
    """
    config = read_json(directory / ADAPTER_CONFIG, MergeError)
    if config.get("peft_type") != "LORA":
        raise MergeError(
            f"{directory}: peft_type {config.get('peft_type')}; only LORA is merged shard by shard"
        )
    for option, plain in REFUSED.items():
        if config.get(option, plain) not in (plain, None, [], {}):
            raise MergeError(
                f"{directory}: {option}: {config[option]!r} is more than a low-rank update and is "
                "not merged"
            )
    path = directory / ADAPTER_WEIGHTS
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
    updates = {}
    used = set()
    for key in keys:
        if not key.endswith(".lora_A.weight"):
            continue
        partner = key.replace(".lora_A.", ".lora_B.")
        module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        if partner in keys:
            updates[module] = LoraUpdate(
                _scaling(config, module), bool(config.get("fan_in_fan_out")), path, key, partner
            )
            used |= {key, partner}
    if keys - used or not updates:
        first = min(keys - used, default="(none)")
        raise MergeError(
            f"{path}: {len(keys - used)} of {len(keys)} tensors belong to no pair of lora_A and "
            f"lora_B, the first: {first}"
        )
    return updates


def _scaling(config: Mapping[str, object], module: str) -> float:
    from peft.utils.other import get_pattern_key

    def of(pattern: str, default: str) -> float:
        patterns = config.get(pattern) or {}
        assert isinstance(patterns, dict)
        value = patterns.get(get_pattern_key(patterns.keys(), module), config[default])
        return float(str(value))

    rank, alpha = of("rank_pattern", "r"), of("alpha_pattern", "lora_alpha")
    # rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) divides by the root of the rank.
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
