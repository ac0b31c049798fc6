"""Learning rates per module and depth, and gradual unfreezing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from transformers import TrainerState

from lora_kit.backbone.blocks import block_number
from lora_kit.recipe.training import TrainingSpec
from lora_kit.runtime.console import say
from lora_kit.training.gradient_hooks import GradientHook

Groups = list[dict[str, Any]]


def needs_parameter_groups(spec: TrainingSpec) -> bool:
    """Return true if the recipe's learning rate differs between parameters."""
    return (
        bool(spec.lr_multipliers)
        or spec.loraplus_lr_ratio is not None
        or spec.layerwise_lr_decay is not None
    )


def belongs_to_module(parameter: str, module: str) -> bool:
    """Return true if the parameter's name contains the module's name as complete components.

    Args:
        parameter: full name of a parameter.
        module: name of a module, or several joined by dots.
    """
    return f".{module}." in f".{parameter}."


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], decayed: Collection[str], spec: TrainingSpec
) -> Groups:
    """Return an optimizer's parameter groups, the one closest to the recipe's learning rate first.

    Factors on the learning rate:

    - `loraplus_lr_ratio`, LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the second factor, which is
      initialized to zero, gets a higher rate.
    - `layerwise_lr_decay`, discriminative fine-tuning (Howard & Ruder 2018, arXiv:1801.06146,
      section 3.2): each block gets a lower rate than the block above it.
    - `lr_multipliers`, by the names of modules.

    Args:
        parameters: trained parameters, by name.
        decayed: names of the parameters with weight decay.
        spec: the recipe's section `training`.
    """
    last = _last_block(parameters)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        factor = _rate_factor(name, last, spec)
        decay = spec.weight_decay if name in decayed else 0.0
        group = groups.setdefault(
            (factor, decay),
            {"params": [], "lr": factor * spec.learning_rate, "weight_decay": decay},
        )
        group["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: abs(group["lr"] / spec.learning_rate - 1))


def _rate_factor(name: str, last: int, spec: TrainingSpec) -> float:
    factor = math.prod(
        multiplier
        for module, multiplier in spec.lr_multipliers.items()
        if belongs_to_module(name, module)
    )
    if spec.loraplus_lr_ratio is not None and "lora_B" in name:
        factor *= spec.loraplus_lr_ratio
    if spec.layerwise_lr_decay is not None:
        factor *= spec.layerwise_lr_decay ** (last - _depth(name, last))
    return factor


def _last_block(names: Iterable[str]) -> int:
    """Return the highest block index among parameters; 0 without blocks."""
    return max((block for block in map(block_number, names) if block is not None), default=0)


def _depth(name: str, last: int) -> int:
    """Return the block index of a parameter: -1 for embeddings, `last` for other parameters."""
    block = block_number(name)
    if block is not None:
        return block
    # GPT-NeoX calls its output head embed_out.
    return -1 if "embed" in name and "embed_out" not in name else last


class GradualUnfreezing(GradientHook):
    """Gradual unfreezing: one more block is trained every N steps, last to first.

    Howard & Ruder 2018, arXiv:1801.06146, section 3.3: the most specific layers are adapted first,
    so that the first steps do not destroy general knowledge. A frozen block has no gradient at the
    optimizer step, and therefore no moments, no weight decay and no share in the gradient norm.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], steps: int, total: int):
        """Create the hook; warn if some blocks will never be trained.

        Args:
            parameters: trained parameters, by name.
            steps: optimizer steps from one block to the next.
            total: optimizer steps of the training.
        """
        last = _last_block(parameters)
        # Number of blocks that are unfrozen before each parameter.
        self._turns = [(last - _depth(name, last), p) for name, p in parameters.items()]
        self._steps = steps
        turns = {turn for turn, _ in self._turns}
        never = sum(turn * steps >= total for turn in turns)
        if never:
            deepest = max(turns)
            fix = f"set it to {(total - 1) // deepest}" if total > deepest else "train longer"
            say(
                f"training.gradual_unfreezing_steps: {never} of {len(turns)} groups of layers are "
                f"not trained within {total} steps (got {steps}). Fix: {fix}"
            )

    def modify_gradients(self, state: TrainerState, scale: float) -> None:
        """Remove the gradients of blocks that are still frozen."""
        del scale
        unfrozen = state.global_step // self._steps
        for turn, parameter in self._turns:
            if turn > unfrozen:
                parameter.grad = None
