"""Attention implementation: the recipe's choice, and what flash attention needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.varlen import VARLEN, register_varlen
from lora_kit.backbone.varlen_support import AMPERE, varlen_problem
from lora_kit.recipe.backbone import Attention, BackboneSpec
from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FLASH: tuple[Attention, ...] = ("flash_attention_2", "flash_attention_3")
# Implementations that separate packed examples by their lengths, without a mask.
WITH_LENGTHS: tuple[Attention, ...] = (VARLEN, *FLASH)
HOPPER = (9, 0)


def choose_attention(
    spec: BackboneSpec, config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Attention, str]:
    """Return the attention to load a model with, and why `auto` is not `varlen` on a GPU.

    On a CPU, `auto` stays `auto`, the choice of transformers.

    Args:
        spec: backbone section of the recipe.
        config: configuration of the model.
        device: device that the backbone computes on.
        dtype: compute dtype.

    Raises:
        BackboneError: if `varlen` is requested and cannot compute the model.
    """
    on_gpu = device.type == "cuda"
    if spec.attention != VARLEN and (spec.attention != "auto" or not on_gpu):
        return spec.attention, ""
    capability = torch.cuda.get_device_capability(device) if on_gpu else None
    problem = varlen_problem(config, dtype, capability)
    if not problem:
        return VARLEN, ""
    if spec.attention == VARLEN:
        raise BackboneError(
            f"backbone.attention: {VARLEN} cannot compute this model ({problem}). Fix: leave "
            "backbone.attention out"
        )
    return "auto", problem


def expected_attention(spec: BackboneSpec, config: PretrainedConfig, device_type: str) -> Attention:
    """Return the attention that a recipe has on a machine which may not be this one.

    Args:
        spec: backbone section of the recipe, its dtype resolved.
        config: configuration of the model.
        device_type: `cpu` or `cuda`; such a GPU is taken to be of the Ampere generation or later.
    """
    if spec.attention != "auto" or device_type != "cuda":
        return spec.attention
    dtype = torch.float32 if spec.dtype == "float32" else torch.bfloat16
    return "auto" if varlen_problem(config, dtype, AMPERE) else VARLEN


def attention_arguments(attention: Attention, device: torch.device) -> dict[str, str]:
    """Return the keyword arguments of `from_pretrained`; empty for `auto`.

    Args:
        attention: result of `choose_attention`.
        device: device that the backbone computes on.

    Raises:
        BackboneError: if flash attention cannot work on this machine.
    """
    if attention == "auto":
        return {}
    if attention == VARLEN:
        register_varlen()
    if attention in FLASH:
        problem = flash_attention_problem(attention, device)
        if problem:
            raise BackboneError(
                f"backbone.attention: {attention} {problem}. Fix: set backbone.attention: sdpa, or "
                "leave it out"
            )
    return {"attn_implementation": attention}


def flash_attention_problem(attention: str, device: torch.device) -> str | None:
    """Describe why flash attention cannot work on a device; `None` if it can.

    Args:
        attention: one of `FLASH`.
        device: device that the backbone computes on.
    """
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    needed: dict[str, tuple[tuple[int, int], str, Callable[[], bool]]] = {
        "flash_attention_2": (AMPERE, "flash-attn, 2.3.3 or later", is_flash_attn_2_available),
        "flash_attention_3": (HOPPER, "flash-attn-3", is_flash_attn_3_available),
    }
    least, package, is_available = needed[attention]
    if device.type != "cuda":
        return f"needs a GPU (got device {device.type})"
    capability = torch.cuda.get_device_capability(device)
    if capability < least:
        return (
            f"needs a GPU of compute capability {least[0]}.{least[1]} or higher (got {capability})"
        )
    # Without the package, transformers 5 would download a compiled kernel from the hub: code that
    # the recipe does not name.
    if not is_available():
        return f"needs the package {package} (not installed)"
    return None


def attention_of(model: Any) -> str:
    """Return the attention of a model, bare or wrapped for several processes; empty if unknown."""
    config = getattr(getattr(model, "module", model), "config", None)
    return str(getattr(config, "_attn_implementation", ""))


def lengths_arguments(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lengths of a packed batch as transformers' FlashAttentionKwargs name them.

    They are computed once, on the host, so that no layer waits for the device.

    Args:
        model: a language model, or a decoder's forward.
        batch: result of `pack_examples`, or any other batch.

    Returns:
        Keyword arguments of the model's forward; empty if its attention does not read lengths.
    """
    attention = attention_of(model)
    if "lengths" not in batch or attention not in WITH_LENGTHS:
        return {}
    lengths, device = batch["lengths"], batch["input_ids"].device
    starts, longest = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), max(lengths)
    if device.type == "cuda":
        starts = starts.pin_memory().to(device, non_blocking=True)
    arguments = {
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    if attention == VARLEN:
        # transformers hands a mask of four dimensions to the layers as it is, and makes none.
        arguments["attention_mask"] = starts[:1].view(1, 1, 1, 1)
    return arguments
