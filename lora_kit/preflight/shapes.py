"""A model of shapes alone: its architecture, its adapter and its quantization, without weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_kit.adapter.attach import wrapped
from lora_kit.recipe.adapter import NOT_SHAPED, AdapterSpec
from lora_kit.recipe.backbone import Attention, Quantization
from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Dettmers et al. 2023, arXiv:2305.14314, section 3: one constant for 64 weights, in 8 bits, and one
# float32 for 256 of those.
WEIGHTS_A_BLOCK = 64
BLOCKS_A_CONSTANT = 256


@dataclass(frozen=True)
class ShapedModel:
    """A PEFT model whose tensors have shapes and no data.

    Attributes:
        model: the model with its adapter attached.
        mode: in which all that is done with it has to run.
        quantized_bytes: of the weights in 4 or 8 bits, constants included.
        dense_bytes: of all other frozen weights: embeddings, norms, the output head.
        adapter_parameters: how many are trained.
        checkpoint_parameters: of the backbone, as its files hold them.
    """

    model: Any
    mode: FakeTensorMode
    quantized_bytes: int
    dense_bytes: int
    adapter_parameters: int
    checkpoint_parameters: int


def shaped_model(
    config: PretrainedConfig,
    adapter: AdapterSpec,
    quantization: Quantization,
    dtype: torch.dtype,
    attention: Attention = "auto",
    on_gpu: bool = False,
) -> ShapedModel:
    """Build a model from its configuration alone: an 8B one takes seconds and no memory.

    Args:
        config: of the backbone.
        adapter: what is attached to it.
        quantization: of its linear layers.
        dtype: what it computes in.
        attention: `sdpa`, `eager`, or `auto`: what transformers would take.
        on_gpu: whether dropout keeps a mask of bytes; on a CPU it keeps one of floats.

    Raises:
        BackboneError: if transformers has no causal language model of this configuration.
        AdapterError: if a target of the adapter is misspelt.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    chosen = {"attn_implementation": attention} if attention != "auto" else {}
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, **chosen)
        except ValueError as error:
            raise BackboneError(f"backbone.model: {error}") from error
        model.requires_grad_(False)
        quantized = _quantized(model) if quantization != "none" else {}
        total = sum(p.numel() for p in model.parameters())
        dense = sum(p.numel() * p.element_size() for p in model.parameters())
        dense -= sum(m.weight.numel() * m.weight.element_size() for m in quantized.values())
        dense += sum(b.numel() * b.element_size() for b in model.buffers())
        for module in quantized.values():
            module.__class__ = _QuantizedShape
        adapted = wrapped(model, _shaped(adapter))
        for module in adapted.modules():
            if on_gpu and type(module) is torch.nn.Dropout:
                module.__class__ = _FusedDropout
    return ShapedModel(
        model=adapted,
        mode=_without_data(adapted),
        quantized_bytes=sum(
            stored_bytes(m.weight.numel(), m.out_features, quantization) for m in quantized.values()
        ),
        dense_bytes=dense,
        adapter_parameters=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        checkpoint_parameters=total,
    )


def _shaped(adapter: AdapterSpec) -> AdapterSpec:
    """The adapter, or where it cannot be made of shapes alone, LoRA in its place."""
    return AdapterSpec() if adapter.method in NOT_SHAPED else adapter


def stored_bytes(weights: int, rows: int, quantization: Quantization) -> int:
    """Bytes of a quantized matrix with its constants.

    4 bits: half a byte a weight, a byte a block of 64, four bytes for 256 blocks: 4.127 bits a
    weight. 8 bits (Dettmers et al. 2022, arXiv:2208.07339): a byte a weight, a float32 a row.
    """
    if quantization == "int8":
        return weights + 4 * rows
    blocks = -(-weights // WEIGHTS_A_BLOCK)
    return -(-weights // 2) + blocks + 4 * -(-blocks // BLOCKS_A_CONSTANT)


def _quantized(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers that transformers hands to bitsandbytes: all but the output head."""
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = set(get_keys_to_not_convert(model))
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and name not in kept
    }


def _without_data(model: torch.nn.Module) -> FakeTensorMode:
    """Put fake tensors of the CPU in the place of meta tensors, which know no autocast."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, torch.Tensor] = {}
    with mode:
        for module in model.modules():
            holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for tensors in holders:
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:  # tied weights stay one
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                        made[id(tensor)] = (
                            torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                            if isinstance(tensor, torch.nn.Parameter)
                            else fake
                        )
                    tensors[name] = made[id(tensor)]
    return mode


class _Dequantized(torch.autograd.Function):
    """x @ W^T, where W is in memory only while it is multiplied with."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Take x (..., in); return (..., out)."""
        ctx.shape = shape
        return x @ torch.empty(shape, dtype=x.dtype, device=x.device).t()

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Take the gradient of the output (..., out); return that of x (..., in)."""
        (gradient,) = upstream
        return gradient @ torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device), None


class _QuantizedShape(torch.nn.Linear):
    """A linear layer that keeps nothing for its backward pass but its own packed weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Take (..., in); return (..., out)."""
        multiply: Callable[..., torch.Tensor] = _Dequantized.apply
        product = multiply(input, self.weight.shape)
        return product if self.bias is None else product + self.bias


class _FusedDropout(torch.nn.Dropout):
    """Dropout as a GPU does it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Take and return any shape."""
        return torch.native_dropout(input, self.p, self.training)[0]
