"""A backbone's blocks: where they are, and which one a parameter is in."""

from __future__ import annotations

import re

import torch

from lora_kit.runtime.errors import AdapterError

# The first number in a parameter's name is that of its block.
BLOCK = re.compile(r"\.(\d+)\.")


def block_of(name: str) -> int | None:
    """The number of the block that a parameter is in, by its name; `None` outside of them."""
    found = BLOCK.search(name)
    return int(found[1]) if found else None


def blocks_of(model: torch.nn.Module) -> tuple[str, torch.nn.ModuleList]:
    """Name and modules of the blocks: the list that holds the most weights.

    Raises:
        AdapterError: if the model has no list of modules.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    if not lists:
        raise AdapterError("adapter.method: this backbone has no list of blocks; use lora")
    return max(lists, key=lambda named: sum(p.numel() for p in named[1].parameters()))
