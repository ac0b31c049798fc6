"""Model on fake tensors: architecture, adapter and quantization without weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_kit.adapter.attach import wrap_with_adapter
from lora_kit.backbone.open_files import build_model
from lora_kit.recipe.adapter import NOT_SHAPED, AdapterSpec
from lora_kit.recipe.backbone import Attention, Quantization
from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Double quantization (Dettmers et al. 2023, arXiv:2305.14314, section 3): an 8-bit constant per
# block of 64 weights and a float32 constant per 256 blocks.
WEIGHTS_PER_BLOCK = 64
BLOCKS_PER_CONSTANT = 256


@dataclass(frozen=True)
class FakeModel:
    """PEFT model whose tensors have shapes and dtypes but no data.

    Attributes:
        model: the model with its adapter attached.
        mode: mode in which every operation on the model has to run.
        quantized_bytes: bytes of the weights in 4 or 8 bits, constants included.
        constant_bytes: bytes of these constants.
        dense_bytes: bytes of all other frozen weights: embeddings, norms, the output head.
        adapter_parameters: number of trained parameters.
        checkpoint_parameters: number of parameters in the backbone's files.
    """

    model: Any
    mode: FakeTensorMode
    quantized_bytes: int
    constant_bytes: int
    dense_bytes: int
    adapter_parameters: int
    checkpoint_parameters: int


def build_fake_model(
    config: PretrainedConfig,
    adapter: AdapterSpec,
    quantization: Quantization,
    dtype: torch.dtype,
    attention: Attention = "auto",
    on_gpu: bool = False,
) -> FakeModel:
    """Build a model from its configuration; an 8B model takes seconds and no memory.

    Args:
        config: configuration of the backbone.
        adapter: adapter to attach; methods that read weights are replaced by LoRA.
        quantization: quantization of the linear layers.
        dtype: compute dtype.
        attention: `sdpa`, `eager`, or `auto` for the default of transformers.
        on_gpu: if true, dropout saves a byte mask as on a GPU, otherwise a float mask as on a CPU.

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
            model = build_model(AutoModelForCausalLM, config, dtype=dtype, **chosen)
        except ValueError as error:
            raise BackboneError(f"backbone.model: {error}") from error
        model.requires_grad_(False)
        quantized = _quantized(model) if quantization != "none" else {}
        total = sum(p.numel() for p in model.parameters())
        dense = sum(p.numel() * p.element_size() for p in model.parameters())
        dense -= sum(m.weight.numel() * m.weight.element_size() for m in quantized.values())
        dense += sum(b.numel() * b.element_size() for b in model.buffers())
        for module in quantized.values():
            module.__class__ = _QuantizedLinear
        # These methods read weights when they are attached.
        adapter = AdapterSpec() if adapter.method in NOT_SHAPED else adapter
        adapted = wrap_with_adapter(model, adapter)
        for module in adapted.modules():
            if on_gpu and type(module) is torch.nn.Dropout:
                module.__class__ = _FusedDropout
    stored = [
        stored_bytes(m.weight.numel(), m.out_features, quantization) for m in quantized.values()
    ]
    packed = [packed_bytes(m.weight.numel(), quantization) for m in quantized.values()]
    return FakeModel(
        model=adapted,
        mode=_to_fake_tensors(adapted),
        quantized_bytes=sum(stored),
        constant_bytes=sum(stored) - sum(packed),
        dense_bytes=dense,
        adapter_parameters=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        checkpoint_parameters=total,
    )


def stored_bytes(weights: int, rows: int, quantization: Quantization) -> int:
    """Return the bytes of a quantized matrix with its constants.

    4 bits: half a byte per weight, a byte per block of 64 and four bytes per 256 blocks, which is
    4.127 bits per weight. 8 bits (Dettmers et al. 2022, arXiv:2208.07339): a byte per weight and a
    float32 per row.
    """
    packed = packed_bytes(weights, quantization)
    if quantization == "int8":
        return packed + 4 * rows
    blocks = -(-weights // WEIGHTS_PER_BLOCK)
    return packed + blocks + 4 * -(-blocks // BLOCKS_PER_CONSTANT)


def packed_bytes(weights: int, quantization: Quantization) -> int:
    """Return the bytes of a quantized matrix without its constants."""
    return weights if quantization == "int8" else -(-weights // 2)


def gatherable_bytes(module: torch.nn.Module) -> int:
    """Return the bytes of a module's parameters as FSDP gathers them, 4-bit weights packed."""
    quantized = {id(m.weight) for m in module.modules() if isinstance(m, _QuantizedLinear)}
    return sum(
        packed_bytes(p.numel(), "nf4") if id(p) in quantized else p.numel() * p.element_size()
        for p in module.parameters()
    )


def _quantized(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Return the linear layers that bitsandbytes quantizes: all but the output head."""
    from transformers.quantizers.base import get_keys_to_not_convert

    excluded = set(get_keys_to_not_convert(model))
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and name not in excluded
    }


def replace_tensors(model: torch.nn.Module, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace a model's parameters and buffers; tied ones stay tied.

    Args:
        model: model to change in place.
        make: function that returns the tensor in the place of another.
    """
    replaced: dict[int, torch.Tensor] = {}
    for module in model.modules():
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in holders:
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in replaced:
                    replaced[id(tensor)] = make(tensor)
                tensors[name] = replaced[id(tensor)]


def empty_like(tensor: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """Return an empty tensor or parameter like another; on the CPU by default."""
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _to_fake_tensors(model: torch.nn.Module) -> FakeTensorMode:
    """Replace meta tensors, which do not support autocast, by fake CPU tensors."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        replace_tensors(model, empty_like)
    return mode


class _Dequantized(torch.autograd.Function):
    """x @ W^T, with W dequantized only during the product."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Compute the product (..., out) of x (..., in) and a weight of shape (out, in)."""
        ctx.shape = shape
        return x @ torch.empty(shape, dtype=x.dtype, device=x.device).t()

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Compute the gradient of x (..., in) from that of the product (..., out)."""
        (gradient,) = upstream
        return gradient @ torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device), None


class _QuantizedLinear(torch.nn.Linear):
    """Quantized linear layer, which saves only its quantized weight for the backward pass."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out)."""
        multiply: Callable[..., torch.Tensor] = _Dequantized.apply
        product = multiply(input, self.weight.shape)
        return product if self.bias is None else product + self.bias


class _FusedDropout(torch.nn.Dropout):
    """Dropout of a GPU, which saves a byte mask for the backward pass."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop elements of a tensor of any shape."""
        return torch.native_dropout(input, self.p, self.training)[0]
