"""Transformer blocks of a backbone, and the block that a parameter belongs to."""

from __future__ import annotations

import re

import torch

from lora_kit.runtime.errors import AdapterError

# The first number in a parameter's name is the index of its block.
BLOCK_NUMBER = re.compile(r"\.(\d+)\.")


def block_number(name: str) -> int | None:
    """Return the index of a parameter's block, from its name; `None` outside of the blocks."""
    match = BLOCK_NUMBER.search(name)
    return int(match[1]) if match else None


def find_blocks(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """Return the name and the modules of the blocks: the module list with the most weights.

    Raises:
        AdapterError: if the model has no list of modules.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    if not lists:
        raise AdapterError(
            "adapter.method: needs a list of blocks, which this backbone does not have. Fix: use "
            "lora"
        )
    return max(lists, key=lambda named: sum(p.numel() for p in named[1].parameters()))
