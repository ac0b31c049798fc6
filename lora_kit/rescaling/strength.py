"""How strongly an adapter acts: its `lora_B` times a scale, of the whole or of a third of blocks.

LoRA adds `scaling * B @ A` to a weight (Hu et al. 2021, arXiv:2106.09685), which is linear in B:
half of B is half of the update, under rsLoRA too, and 0 is the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_kit.adapter.attach import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from lora_kit.backbone.blocks import block_of
from lora_kit.merging.combining.sources import PLAIN, PLAIN_STARTS
from lora_kit.runtime.errors import AdapterError, RecipeError
from lora_kit.runtime.files import read_json

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25)
THIRDS = ("early", "middle", "late")
SCALED = ("lora_B", "lora_embedding_B")
FACTORS = ("lora_A", "lora_embedding_A", *SCALED)


@dataclass(frozen=True)
class AdapterScale:
    """Scales of the early, the middle and the late third of the decoder blocks."""

    early: float
    middle: float
    late: float

    @classmethod
    def whole(cls, scale: float) -> AdapterScale:
        """The same everywhere."""
        return cls(scale, scale, scale)

    @property
    def parts(self) -> tuple[float, float, float]:
        """In the order of the blocks."""
        return self.early, self.middle, self.late

    @property
    def is_whole(self) -> bool:
        """Whether it is the same everywhere."""
        return len(set(self.parts)) == 1

    @property
    def name(self) -> str:
        """`0.5`, or `early 0.5` where the others are 1."""
        if self.is_whole:
            return f"{self.early:g}"
        named = zip(THIRDS, self.parts, strict=True)
        return ", ".join(f"{third} {scale:g}" for third, scale in named if scale != 1)


TRAINED = AdapterScale.whole(1.0)


def strengths(scales: Sequence[float], by_layer: bool) -> tuple[AdapterScale, ...]:
    """What is tried, the weakest first; always with the adapter as it was trained.

    By layer, besides the whole, each third at each scale while the others stay at 1: three times as
    many, not their cube.

    Args:
        scales: of the whole. 0 is the base, which is there anyway; a third may be at 0.
        by_layer: whether thirds are turned too.

    Raises:
        RecipeError: if a scale is no number of 0 or more.
    """
    for scale in scales:
        if not math.isfinite(scale) or scale < 0:
            raise RecipeError(
                f"--scales: {scale:g}: a scale is 0 (the base) or more, 1 being the adapter as it "
                "was trained, such as 0.25,0.5,1"
            )
    ordered = sorted({*scales, 1.0})
    found = [AdapterScale.whole(scale) for scale in ordered if scale > 0]
    if by_layer:
        turned = [scale for scale in ordered if scale != 1]
        found += [AdapterScale(scale, 1.0, 1.0) for scale in turned]
        found += [AdapterScale(1.0, scale, 1.0) for scale in turned]
        found += [AdapterScale(1.0, 1.0, scale) for scale in turned]
    return tuple(found)


@contextmanager
def scaled(model: Any, strength: AdapterScale) -> Iterator[Any]:
    """The model with its adapter at a strength; as it was, bit for bit, whatever happens inside.

    Raises:
        AdapterError: as `require_thirds`, if the strength is not the same everywhere.
    """
    blocks = 0 if strength.is_whole else require_thirds(model)
    factors = [(name, p) for name, p in model.named_parameters() if _is_scaled(name)]
    before = [parameter.data for _, parameter in factors]
    try:
        for name, parameter in factors:
            third = 0 if strength.is_whole else _third(name, blocks)
            parameter.data = parameter.data * strength.parts[third]
        yield model
    finally:
        for (_, parameter), data in zip(factors, before, strict=True):
            parameter.data = data


def _is_scaled(name: str) -> bool:
    return not set(SCALED).isdisjoint(name.split("."))


def _third(name: str, blocks: int) -> int:
    return 3 * (block_of(name) or 0) // blocks


def require_thirds(model: Any) -> int:
    """How many decoder blocks there are to be turned by thirds.

    Raises:
        AdapterError: if they are fewer than three, or the adapter acts outside of them.
    """
    blocks = int(model.config.get_text_config().num_hidden_layers)
    if blocks < len(THIRDS):
        raise AdapterError(
            f"--by-layer: the backbone has {blocks} decoder blocks, which make no three thirds; "
            "leave --by-layer out"
        )
    for name, _ in model.named_parameters():
        block = block_of(name)
        if _is_scaled(name) and (block is None or block >= blocks):
            raise AdapterError(
                f"--by-layer: the adapter acts on {name}, which is in none of the {blocks} decoder "
                "blocks, so in no third; leave --by-layer out"
            )
    return blocks


def require_linear(adapter: Path) -> None:
    """Refuse an adapter that a scale of `lora_B` does not turn, with the reason.

    Raises:
        AdapterError: if it is not a LoRA alone, all of it linear in `lora_B`.
    """
    config = read_json(adapter / ADAPTER_CONFIG, AdapterError)
    reason = _more_than_lora(config)
    if reason:
        raise AdapterError(f"{adapter}: {reason}; dial turns LoRA and rsLoRA, nothing beside them")
    try:
        with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
            others = [n for n in file.keys() if set(FACTORS).isdisjoint(n.split("."))]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{adapter / ADAPTER_WEIGHTS}: cannot be read: {error}") from error
    if others:
        raise AdapterError(
            f"{adapter}: {len(others)} of its tensors are no factors of a LoRA, the first: "
            f"{others[0]}; a scale would leave them as they are. Train without them to use dial"
        )


def _more_than_lora(config: dict[str, Any]) -> str:
    """Why the update is not linear in `lora_B` alone; empty where it is."""
    method = config.get("peft_type")
    if method != "LORA":
        return f"peft_type: {method} has no factor lora_B that its whole effect is linear in"
    if config.get("use_dora"):
        return (
            "use_dora: DoRA norms the base and the update together (Liu et al. 2024, "
            "arXiv:2402.09353, equation 5), so that half of lora_B is not half of its effect"
        )
    for option in ("modules_to_save", "trainable_token_indices"):
        if config.get(option):
            return f"{option}: {config[option]}: saved in full, they are no update to be scaled"
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        return (
            f"init_lora_weights: {start} took something out of the backbone's weights, so that the "
            "factors are not the difference from the base"
        )
    for option, value in config.items():
        if option not in PLAIN and value not in (None, False, "none", [], {}):
            return f"{option}: {value}: it is not known to be linear in lora_B"
    return ""
