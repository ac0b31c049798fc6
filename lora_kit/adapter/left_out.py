"""Modules that `all-linear` would adapt, and that are left out of an adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_kit.backbone.heads import (
    HEAD_NAMES,
    POOLER,
    is_base_model,
    is_masked_model,
    peft_task_type,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig


def without_head_of_words(model: torch.nn.Module) -> dict[str, list[str]]:
    """Return the option that keeps the head of a token classifier from being a target.

    PEFT 0.21 leaves only the head of a sequence classifier out of `all-linear`, and cannot save a
    head that has an adapter.
    """
    if peft_task_type(model) != "TOKEN_CLS":
        return {}
    return {"exclude_modules": [name for name in HEAD_NAMES if hasattr(model, name)]}


def leave_out_pooler(config: PeftConfig, model: torch.nn.Module) -> None:
    """Leave the pooler of an embedding out: it is above the hidden states that are pooled."""
    is_left_out = is_base_model(model) and hasattr(model, POOLER)
    if is_left_out and getattr(config, "exclude_modules", "") is None:
        config.exclude_modules = [f"{POOLER}.dense"]


def leave_out_new_layers(
    config: PeftConfig, model: torch.nn.Module, new_layers: Sequence[str]
) -> None:
    """Leave the new layers of a masked language model's head out; they are saved in full.

    PEFT cannot save a module that has an adapter.
    """
    from peft.utils.constants import DUMMY_TARGET_MODULES

    targets = getattr(config, "target_modules", None)
    if isinstance(targets, list | set):
        # PEFT warns of modules that would not have been adapted.
        suffixes = tuple(f".{target}" for target in targets)
        new_layers = [name for name in new_layers if f".{name}".endswith(suffixes)]
    if not new_layers or not is_masked_model(model) or targets == DUMMY_TARGET_MODULES:
        return
    if not hasattr(config, "exclude_modules"):
        return
    own = config.exclude_modules
    if isinstance(own, str):
        config.exclude_modules = "|".join([f"(?:{own})", *map(re.escape, new_layers)])
    else:
        config.exclude_modules = [*(own or []), *new_layers]
