"""Who learns how fast: learning rates by factor and by depth, and blocks that begin later."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from transformers import TrainerState

from lora_kit.backbone.blocks import block_of
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.console import say
from lora_kit.training.before_clipping import BeforeClipping

Groups = list[dict[str, Any]]


def has_own_rates(spec: TrainingSpec) -> bool:
    """Whether parameters differ in their learning rates."""
    return (
        bool(spec.lr_multipliers)
        or spec.loraplus_lr_ratio is not None
        or spec.layerwise_lr_decay is not None
    )


def is_in(parameter: str, module: str) -> bool:
    """Whether a parameter is in a module of that name, or in several names with points between."""
    return f".{module}." in f".{parameter}."


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], decayed: Collection[str], spec: TrainingSpec
) -> Groups:
    """An optimizer's groups, that of the recipe's own learning rate first.

    Args:
        parameters: what is trained, by name.
        decayed: names of those with weight decay.
        spec: `loraplus_lr_ratio`: LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the second factor, which
            begins at zero, learns faster. `layerwise_lr_decay`: discriminative fine-tuning (Howard & Ruder
            2018, arXiv:1801.06146, section 3.2): a block learns more slowly than the one above it.
            `rates`: by the names of modules.
    """
    last = _last(parameters)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        factor = _factor(name, last, spec)
        decay = spec.weight_decay if name in decayed else 0.0
        group = groups.setdefault(
            (factor, decay),
            {"params": [], "lr": factor * spec.learning_rate, "weight_decay": decay},
        )
        group["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: abs(group["lr"] / spec.learning_rate - 1))


def _factor(name: str, last: int, spec: TrainingSpec) -> float:
    factor = math.prod(
        times for module, times in spec.lr_multipliers.items() if is_in(name, module)
    )
    if spec.loraplus_lr_ratio is not None and "lora_B" in name:
        factor *= spec.loraplus_lr_ratio
    if spec.layerwise_lr_decay is not None:
        factor *= spec.layerwise_lr_decay ** (last - _depth(name, last))
    return factor


def _last(names: Iterable[str]) -> int:
    """The number of the last block that any is in."""
    return max((block for block in map(block_of, names) if block is not None), default=0)


def _depth(name: str, last: int) -> int:
    """The block of a parameter; embeddings stand below the first, and the rest above the last."""
    block = block_of(name)
    if block is not None:
        return block
    # GPT-NeoX calls its output head embed_out.
    return -1 if "embed" in name and "embed_out" not in name else last


class GradualUnfreezing(BeforeClipping):
    """Blocks begin to learn one after the other, from the last to the first.

    Howard & Ruder 2018, arXiv:1801.06146, section 3.3: what is most specific is adapted first, so
    that what is general is not washed out by the first steps. A block that waits has no gradient
    when the optimizer steps, and so neither moments nor weight decay, and no part in the norm.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], steps: int, total: int):
        """Plan, and say it if some blocks will not come to learn.

        Args:
            parameters: what is trained, by name.
            steps: of the optimizer, from one block to the next.
            total: steps of the training.
        """
        last = _last(parameters)
        self._waits = [(last - _depth(name, last), p) for name, p in parameters.items()]
        self._steps = steps
        never = sum(n * steps >= total for n in {wait for wait, _ in self._waits})
        if never:
            say(
                f"training.gradual_unfreezing_steps: {steps}: {never} of {last + 1} blocks do not begin to "
                f"learn within {total} steps"
                + (f"; {total // (last + 1)} would let all of them" if total > last else "")
            )

    def change(self, state: TrainerState, scale: float) -> None:
        """Take the gradients of those away that are not yet to learn."""
        del scale
        begun = state.global_step // self._steps
        for wait, parameter in self._waits:
            if wait > begun:
                parameter.grad = None
