"""4-bit layers whose weights are still those of the model's files, to be quantized layer by layer.

A model that is sharded over the processes may be larger than a GPU and than main memory, even in 4
bits. Its weights stay mapped from the files, which all processes of a machine share, until a layer
is quantized on the process's device and sharded, before the next one is quantized.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit

from lora_kit.backbone.open_files import build_quantizer
from lora_kit.runtime.errors import BackboneError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

# Attributes of a 4-bit weight that say how it is quantized.
SETTINGS = ("blocksize", "compress_statistics", "quant_type", "quant_storage")


class MappedWeight(Params4bit):  # type: ignore[misc]
    """Weight (out, in) of a `MappedLinear4bit` in the dtype of computation.

    PEFT counts the parameters of `Params4bit`, by that name, as packed ones.
    """

    def quantized(self, device: torch.device, module: Linear4bit | None = None) -> Params4bit:
        """Return the weight quantized on a device, as `module.weight`; this one stays as it is."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        weight = Params4bit(self.data, requires_grad=False, module=module, **settings)
        return weight.to(device)

    def to(self, *_: Any, **__: Any) -> MappedWeight:
        """Return the weight where it is; only `quantize_mapped` moves it to a device."""
        return self


class MappedLinear4bit(Linear4bit):  # type: ignore[misc]
    """4-bit linear layer that is not quantized yet.

    Each forward pass quantizes the weight anew and discards it, so that the few passes before
    training compute with the 4-bit weights and hold one of them at a time.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out)."""
        mapped: MappedWeight = self._parameters["weight"]
        self.weight = mapped.quantized(x.device)
        try:
            output: torch.Tensor = super().forward(x)
            return output
        finally:
            self.weight = mapped


def require_unquantized(config: PretrainedConfig, reference: str) -> None:
    """Refuse a model whose files are quantized already.

    Raises:
        BackboneError: naming the launch that takes them.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise BackboneError(
            f"backbone.model: {reference}: the files are quantized already, and only unquantized "
            "ones are quantized and sharded layer by layer. Fix: name the unquantized model, or "
            "launch with accelerate_configs/ddp.yaml"
        )


def map_linear_layers(model: PreTrainedModel, config: BitsAndBytesConfig) -> None:
    """Replace the linear layers that transformers would quantize by `MappedLinear4bit`.

    Args:
        model: model loaded without quantization, changed in place.
        config: 4-bit quantization.
    """
    sources = dict(model.named_modules())
    quantizer = build_quantizer(config, is_quantized=False)
    quantizer.preprocess_model(model, device_map=None)
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            _take_over(module, sources[name])
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer


def _take_over(module: Linear4bit, source: Any) -> None:
    """Give a replaced layer, on the meta device, the weights of the layer before."""
    from transformers.pytorch_utils import Conv1D

    weight = source.weight.data
    settings = {name: getattr(module.weight, name) for name in SETTINGS}
    module.weight = MappedWeight(
        weight.t() if isinstance(source, Conv1D) else weight, requires_grad=False, **settings
    )
    module.bias = source.bias
    module.__class__ = MappedLinear4bit


def mapped_layers(model: torch.nn.Module) -> Iterator[tuple[str, MappedLinear4bit]]:
    """Yield the names and layers of a module that are not quantized yet."""
    for name, module in model.named_modules():
        if isinstance(module, MappedLinear4bit):
            yield name, module


def quantize_mapped(model: torch.nn.Module, device: torch.device) -> None:
    """Quantize all layers of a module that are not quantized yet, on a device."""
    for _, module in list(mapped_layers(model)):
        mapped = module.weight
        module.__class__ = Linear4bit
        module.weight = mapped.quantized(device, module)
