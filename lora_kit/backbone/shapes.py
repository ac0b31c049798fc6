"""A backbone without its weights: shapes, dtypes and the tokenizer, for planning elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_kit.backbone.attention import attention_arguments, choose_attention
from lora_kit.backbone.encoder_decoder import is_encoder_decoder, language_model_class
from lora_kit.backbone.files import BackboneFiles
from lora_kit.backbone.fingerprint import Fingerprint
from lora_kit.backbone.load import (
    Backbone,
    compute_dtype,
    guard_quantized_modules,
    quantization_config,
)
from lora_kit.backbone.open_files import (
    RESTORE,
    build_model,
    build_quantizer,
    open_config,
    open_tokenizer,
    refusing,
)
from lora_kit.backbone.tokenizer import prepare_tokenizer
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError
from lora_kit.runtime.processes import process_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Files that hold a model's weights, in any format.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.gguf")


def has_weight_files(directory: Path) -> bool:
    """Return true if a model directory holds any file of weights, or an index of such files."""
    return any(next(directory.glob(pattern), None) for pattern in WEIGHTS)


def open_shapes(files: BackboneFiles, spec: BackboneSpec) -> Backbone:
    """Open a causal language model on the meta device; a 70B takes a second and no memory.

    Its fingerprint is empty, since nothing is known of the weights.

    Args:
        files: local files, as returned by `resolve`; the weights need not be among them.
        spec: backbone section of the recipe.

    Raises:
        BackboneError: if transformers has no causal language model of the configuration.
    """
    dtype = compute_dtype(spec)
    config = open_config(files.directory)
    device = process_state().device
    attention, _ = choose_attention(spec, config, device, dtype)
    options: dict[str, Any] = attention_arguments(attention, device)
    problem = f"{files.directory / 'config.json'}: transformers cannot build the model"
    with refusing(problem, RESTORE), torch.device("meta"):
        model = build_model(language_model_class(config), config, dtype=dtype, **options)
        _quantize_shapes(model, spec, dtype)
    if is_encoder_decoder(model):
        raise BackboneError(
            f"backbone.model: {files.reference}: an encoder-decoder is planned with its weights "
            "(got none here). Fix: plan where they are"
        )
    tokenizer = open_tokenizer(files.directory)
    prepare_tokenizer(tokenizer, model, files.reference, has_head=False)
    model.requires_grad_(False)
    model.eval()
    resolved = {
        "revision": files.revision,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": str(model.config._attn_implementation),
    }
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        files=files,
        spec=spec.model_copy(update=resolved),
        fingerprint=Fingerprint("", "", "", "", ""),
        quantized_modules=tuple(guard_quantized_modules(model)),
    )


def _quantize_shapes(model: PreTrainedModel, spec: BackboneSpec, dtype: torch.dtype) -> None:
    """Replace the linear layers by quantized ones, with weights of the packed size."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    quantization = quantization_config(spec, dtype)
    if quantization is None:
        return
    quantizer = build_quantizer(quantization, is_quantized=True)
    quantizer.preprocess_model(model=model, device_map=None)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            packed = torch.empty((module.weight.numel() + 1) // 2, 1, dtype=torch.uint8)
            module.weight = Params4bit(packed, requires_grad=False, bnb_quantized=True)
