"""Attention implementation: the recipe's choice, and the conditions of flash attention."""

from __future__ import annotations

import torch

from lora_kit.recipe.backbone import Attention
from lora_kit.runtime.errors import BackboneError

FLASH = "flash_attention_2"
# Compute capability of NVIDIA's Ampere generation, the first that flash-attn 2 has kernels for.
AMPERE = (8, 0)


def attention_arguments(attention: Attention, device: torch.device) -> dict[str, str]:
    """Return the keyword arguments of `from_pretrained`; empty for `auto`.

    Args:
        attention: the recipe's `backbone.attention`.
        device: device that the backbone computes on.

    Raises:
        BackboneError: if flash attention cannot work on this machine.
    """
    if attention == "auto":
        return {}
    if attention == FLASH:
        problem = _flash_attention_problem(device)
        if problem:
            raise BackboneError(
                f"backbone.attention: {FLASH} {problem}. Fix: set backbone.attention: sdpa, or "
                "leave it out"
            )
    return {"attn_implementation": attention}


def _flash_attention_problem(device: torch.device) -> str | None:
    from transformers.utils import is_flash_attn_2_available

    if device.type != "cuda":
        return f"needs a GPU (got device {device.type})"
    capability = torch.cuda.get_device_capability(device)
    if capability < AMPERE:
        return f"needs a GPU of compute capability 8.0 or higher (got {capability})"
    # Without the package, transformers 5 would download a compiled kernel from the hub: code that
    # the recipe does not name.
    if not is_flash_attn_2_available():
        return "needs the package flash-attn, 2.3.3 or later (not installed)"
    return None
