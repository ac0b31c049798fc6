"""Ways of training the same packs, of which each changes one thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from lora_kit.modeling.checkpointing import disable_checkpointing
from tests.gpu.material import device
from tests.gpu.runner import Unavailable

NOT_HERE = "not in this version"


@dataclass(frozen=True)
class Variant:
    """Setting of a training.

    Attributes:
        name: name of the case.
        quantization: `none` or `nf4`.
        checkpointing: gradient checkpointing.
        attention: attention implementation of transformers; `best` is the first that is there of
            `varlen`, `flash_attention_2` and `sdpa`.
        casts: PEFT's casts of LoRA inputs to float32; by default as the package has them.
        chunk: tokens whose logits are held in float32 at a time; `None` for the package's own.
        training: further fields of the recipe's section `training`.
        seconds: largest duration.
    """

    name: str
    quantization: str = "none"
    checkpointing: bool = False
    attention: str = "best"
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
    Variant("bf16-varlen", attention="varlen"),
    Variant("bf16-flash", attention="flash_attention_2"),
    Variant("bf16-casts", casts=True),
    Variant("bf16-chunk-64", chunk=64),
    Variant("bf16-chunk-4096", chunk=4096),
)
# These compile, or change classes for all that follows.
LATE = (
    Variant("bf16-compile", training=(("compile", True),), seconds=100),
    Variant("nf4-compile", quantization="nf4", training=(("compile", True),), seconds=100),
    Variant("bf16-liger", training=(("liger", True),)),
)
# On a CPU that shows that they work.
FEW = ("bf16", "nf4-checkpointing", "bf16-sdpa", "bf16-flash", "bf16-casts", "bf16-chunk-64")


def require_fields(variant: Variant) -> None:
    """Raise `Unavailable` for a field that the recipe of this version lacks."""
    from lora_kit.recipe.training import TrainingSpec

    for name, _ in variant.training:
        if name not in TrainingSpec.model_fields:
            raise Unavailable(f"training.{name} is {NOT_HERE}")
        if name == "liger" and find_spec("liger_kernel") is None:
            raise Unavailable("not installed: liger_kernel")


def attention_of(variant: Variant) -> str:
    """Return the attention implementation, after registering it.

    Raises:
        Unavailable: if this machine or version lacks it.
    """
    if variant.attention == "best":
        for name in ("varlen", "flash_attention_2"):
            if not _lacking(name):
                return name
        return "sdpa"
    if reason := _lacking(variant.attention):
        raise Unavailable(reason)
    return variant.attention


def _lacking(attention: str) -> str:
    if attention == "varlen":
        return _register_varlen()
    if attention == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        if device().type != "cuda" or not is_flash_attn_2_available():
            return "not installed, or no GPU: flash-attn"
    return ""


def _register_varlen() -> str:
    if find_spec("lora_kit.backbone.varlen") is None:
        return f"attention varlen is {NOT_HERE}"
    if find_spec("torch.nn.attention.varlen") is None:
        return "torch.nn.attention.varlen is not in this version of torch"
    from lora_kit.backbone.varlen import register_varlen

    register_varlen()
    return ""


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
