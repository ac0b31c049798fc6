"""Methods `full`, `last-K` and `head`, which train copies of the model's own weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_kit.backbone.blocks import find_blocks
from lora_kit.backbone.heads import (
    HEAD_NAMES,
    is_classifier,
    peft_task_type,
)
from lora_kit.runtime.errors import AdapterError

if TYPE_CHECKING:
    from peft import PeftConfig


def unfrozen_configuration(model: torch.nn.Module, method: str) -> PeftConfig:
    """Return PEFT's configuration that trains a copy of each weight the method unfreezes.

    PEFT's LN tuning (Qi et al. 2022, arXiv:2211.08682) trains a copy of any target module and
    leaves the module unchanged. Disabling the copies therefore restores the base, PEFT loads the
    saved copies, and merging replaces the modules with them. The copies need memory besides the
    base's.

    The embedding and the output head stay frozen: if tied, they are one weight in two places. A
    classifier's head is trained with every method, and PEFT saves it.

    Args:
        model: backbone.
        method: `full` (all blocks and the norm after them) or `last-K` (the last K blocks and the
            norm).

    Raises:
        AdapterError: if the model has fewer than K blocks.
    """
    from peft import LNTuningConfig

    trunk, blocks = find_blocks(model)
    names = [f"{trunk}.{number}" for number in range(len(blocks))]
    if method != "full":
        count = int(method.removeprefix("last-"))
        if count > len(blocks):
            raise AdapterError(
                f"adapter.method: {method}: more blocks than the backbone has (got {count} of "
                f"{len(blocks)}). Fix: use last-1 to last-{len(blocks)}, or full"
            )
        names = names[-count:]
    names += _modules_after(model, trunk)
    targets = [target for name in names for target in _modules_with_weights(model, name)]
    return LNTuningConfig(task_type=peft_task_type(model), target_modules=targets)


def head_only_configuration(model: torch.nn.Module) -> PeftConfig:
    """Return PEFT's configuration that trains a classifier's head only.

    Args:
        model: backbone with the head.
    """
    from peft import LNTuningConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    return LNTuningConfig(task_type=peft_task_type(model), target_modules=DUMMY_TARGET_MODULES)


def _modules_after(model: torch.nn.Module, trunk: str) -> list[str]:
    """Return the modules after the blocks, such as the last norm or an encoder's pooler.

    Modules with embeddings are left out.
    """
    parent = trunk.rpartition(".")[0]
    siblings = [n for n, m in model.named_modules() if n and n.rpartition(".")[0] == parent]
    after = [
        name
        for name in siblings[siblings.index(trunk) + 1 :]
        if not any(isinstance(m, torch.nn.Embedding) for m in model.get_submodule(name).modules())
    ]
    if not is_classifier(model):
        return after
    above = _modules_after(model, parent) if parent else []
    return [name for name in [*after, *above] if name not in HEAD_NAMES]


def _modules_with_weights(model: torch.nn.Module, name: str) -> list[str]:
    """Return the outermost modules, at or below a name, that hold weights themselves."""
    module = model.get_submodule(name)
    if next(module.parameters(recurse=False), None) is not None:
        return [name]
    return [
        owner
        for child, _ in module.named_children()
        for owner in _modules_with_weights(model, f"{name}.{child}")
    ]
