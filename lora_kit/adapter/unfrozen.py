"""`full`, `last-K`, `head`: weights of the model itself trained, as copies that switch off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_kit.backbone.blocks import blocks_of
from lora_kit.backbone.heads import HEAD_NAMES, is_classifier, task_type_of
from lora_kit.runtime.errors import AdapterError

if TYPE_CHECKING:
    from peft import PeftConfig


def copies_of(model: torch.nn.Module, method: str) -> PeftConfig:
    """PEFT's configuration for a trained copy of each weight that the method unfreezes.

    PEFT's LN tuning (Qi et al. 2022, arXiv:2211.08682) trains a copy of whatever module it is given
    and leaves the module itself as it is. So the base is there when the copies are switched off,
    PEFT loads what is saved, and merging puts the copies in their modules' places. It takes the
    memory of the copies besides the base's.

    The embedding and an output head stay frozen: tied, they are one weight in two places. A
    classifier's head is trained with every method, and saved by PEFT itself.

    Args:
        model: the backbone.
        method: `full`: all blocks and the norm after them; `last-K`: the last K blocks and it.

    Raises:
        AdapterError: if the model has fewer blocks.
    """
    from peft import LNTuningConfig

    trunk, blocks = blocks_of(model)
    names = [f"{trunk}.{number}" for number in range(len(blocks))]
    if method != "full":
        wanted = int(method.removeprefix("last-"))
        if wanted > len(blocks):
            raise AdapterError(
                f"adapter.method: {method}: the backbone has {len(blocks)} blocks; last-1 to "
                f"last-{len(blocks)}, or full"
            )
        names = names[-wanted:]
    behind = _behind(model, trunk)
    targets = [t for name in [*names, *behind] for t in _with_weights(model, name)]
    task = task_type_of(model)
    return LNTuningConfig(task_type=task, target_modules=targets)


def head_alone() -> PeftConfig:
    """PEFT's configuration for a classifier's head, which it trains and saves by itself."""
    from peft import LNTuningConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    return LNTuningConfig(task_type="SEQ_CLS", target_modules=DUMMY_TARGET_MODULES)


def _behind(model: torch.nn.Module, trunk: str) -> list[str]:
    """What stands behind the blocks: the last norm, of an encoder its pooler, and no embedding."""
    parent = trunk.rpartition(".")[0]
    beside = [n for n, m in model.named_modules() if n and n.rpartition(".")[0] == parent]
    found = [n for n in beside[beside.index(trunk) + 1 :] if not _embeds(model.get_submodule(n))]
    if not is_classifier(model):
        return found
    above = _behind(model, parent) if parent else []
    return [name for name in [*found, *above] if name not in HEAD_NAMES]


def _embeds(module: torch.nn.Module) -> bool:
    return any(isinstance(one, torch.nn.Embedding) for one in module.modules())


def _with_weights(model: torch.nn.Module, name: str) -> list[str]:
    """The outermost modules at or below a name that hold weights themselves."""
    module = model.get_submodule(name)
    if next(module.parameters(recurse=False), None) is not None:
        return [name]
    return [found for child, _ in module.named_children()
            for found in _with_weights(model, f"{name}.{child}")]  # fmt: skip
