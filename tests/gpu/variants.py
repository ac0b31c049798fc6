"""Ways of training the same packs, of which each changes one thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lora_kit.backbone.varlen import VARLEN, register_varlen
from lora_kit.modeling.checkpointing import disable_checkpointing
from tests.gpu.material import device
from tests.gpu.runner import Unavailable


@dataclass(frozen=True)
class Variant:
    """Setting of a training.

    Attributes:
        name: name of the case.
        quantization: `none` or `nf4`.
        checkpointing: gradient checkpointing.
        attention: attention implementation of transformers.
        casts: PEFT's casts of LoRA inputs to float32; by default as the package has them.
        chunk: tokens whose logits are held in float32 at a time; `None` for the package's own.
        training: further fields of the recipe's section `training`.
        seconds: largest duration.
    """

    name: str
    quantization: str = "none"
    checkpointing: bool = False
    attention: str = VARLEN
    casts: bool = False
    chunk: int | None = None
    training: tuple[tuple[str, Any], ...] = ()
    seconds: float = 45.0


# Most valuable first.
VARIANTS = (
    Variant("bf16"),
    Variant("bf16-checkpointing", checkpointing=True),
    Variant("nf4", quantization="nf4"),
    Variant("nf4-checkpointing", quantization="nf4", checkpointing=True),
    Variant("bf16-sdpa", attention="sdpa"),
    Variant("bf16-sdpa-checkpointing", attention="sdpa", checkpointing=True),
    Variant("bf16-flash", attention="flash_attention_2"),
    Variant("bf16-casts", casts=True),
    Variant("bf16-chunk-64", chunk=64),
    Variant("bf16-chunk-4096", chunk=4096),
    Variant("bf16-offloading", training=(("activation_offloading", True),)),
)
# These compile, or change classes for all that follows.
LATE = (
    Variant("bf16-compile", training=(("compile", True),), seconds=100),
    Variant("nf4-compile", quantization="nf4", training=(("compile", True),), seconds=100),
    Variant("bf16-liger", training=(("liger", True),)),
)
# On a CPU that shows that they work.
FEW = ("bf16", "nf4-checkpointing", "bf16-sdpa", "bf16-flash", "bf16-casts", "bf16-chunk-64")


def attention_of(variant: Variant) -> str:
    """Return the attention implementation, after registering it.

    Raises:
        Unavailable: if this machine or version lacks it.
    """
    if variant.attention == VARLEN:
        register_varlen()
    if variant.attention == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        if device().type != "cuda" or not is_flash_attn_2_available():
            raise Unavailable("not installed, or no GPU: flash-attn")
    return variant.attention


@contextmanager
def applied(variant: Variant, model: Any) -> Iterator[None]:
    """Apply the parts of a variant that no recipe has to a PEFT model, and undo them."""
    with ExitStack() as changes:
        if variant.casts:
            changes.enter_context(_casts(model))
        if variant.chunk is not None:
            changes.enter_context(_chunks(variant.chunk))
        yield


@contextmanager
def _casts(model: Any) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not hasattr(layers[0], "cast_input_dtype_enabled"):
        raise Unavailable("PEFT's casts of inputs cannot be switched off in this version of PEFT")
    before = [layer.cast_input_dtype_enabled for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.cast_input_dtype_enabled = value


@contextmanager
def _chunks(tokens: int) -> Iterator[None]:
    from lora_kit.modeling import likelihood

    name = "GPU_CHUNK" if device().type == "cuda" else "CPU_CHUNK"
    before = getattr(likelihood, name)
    setattr(likelihood, name, tokens)
    try:
        yield
    finally:
        setattr(likelihood, name, before)


def restore(model: Any) -> None:
    """Undo what a training leaves on a base model: checkpointing, hooks, compiled blocks."""
    disable_checkpointing(model)
    if hasattr(model, "disable_input_require_grads") and _has_hooks(model):
        model.disable_input_require_grads()
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None
    if device().type == "cuda":
        torch.cuda.empty_cache()


def _has_hooks(model: Any) -> bool:
    return bool(
        getattr(model, "_require_grads_hooks", None) or hasattr(model, "_require_grads_hook")
    )
