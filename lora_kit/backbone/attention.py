"""How attention is computed: what a recipe asks for, and what keeps it from working here."""

from __future__ import annotations

import torch

from lora_kit.recipe.backbone import Attention
from lora_kit.runtime.errors import BackboneError

FLASH = "flash_attention_2"
# Compute capability of NVIDIA's Ampere generation, the first that flash-attn 2 has kernels for.
AMPERE = (8, 0)


def attention_arguments(attention: Attention, device: torch.device) -> dict[str, str]:
    """What `from_pretrained` is told; nothing where transformers is to choose.

    Args:
        attention: as the recipe says.
        device: that is computed on.

    Raises:
        BackboneError: if flash attention cannot work on this machine.
    """
    if attention == "auto":
        return {}
    if attention == FLASH:
        reason = _why_no_flash(device)
        if reason:
            raise BackboneError(
                f"backbone.attention: {FLASH} {reason}. Set backbone.attention: sdpa, "
                "or leave it out"
            )
    return {"attn_implementation": attention}


def _why_no_flash(device: torch.device) -> str | None:
    from transformers.utils import is_flash_attn_2_available

    if device.type != "cuda":
        return f"takes a GPU, and this process computes on the device {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < AMPERE:
        return f"takes a GPU of compute capability 8.0 or higher, this one has {capability}"
    # Without the package transformers 5 would fetch a compiled kernel from the hub: code that the
    # recipe does not name.
    if not is_flash_attn_2_available():
        return "takes the package flash-attn, 2.3.3 or later, which is not installed"
    return None
