"""Export a merged model in 4 or 8 bits, as transformers loads it with bitsandbytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from lora_kit.backbone.load import guard_quantized_modules, quantization_config
from lora_kit.backbone.open_files import open_config, open_model
from lora_kit.merging.configuration import copy_tokenizer
from lora_kit.recipe.backbone import BackboneSpec, Quantization
from lora_kit.runtime.errors import MergeError


def write_quantized(directory: Path, to: Quantization, output: Path) -> None:
    """Quantize a model as loading it does, and save the quantized weights.

    Args:
        directory: directory of the model, in safetensors.
        to: quantization; `nf4` uses double quantization, as in training.
        output: empty directory.

    Raises:
        MergeError: if the model cannot be loaded, or has no layer to quantize.
    """
    dtype = open_config(directory, MergeError).dtype or torch.float32
    spec = BackboneSpec(model=str(directory), quantization=to)
    model = load_model(directory, dtype=dtype, quantization_config=quantization_config(spec, dtype))
    if not list(guard_quantized_modules(model)):
        raise MergeError(
            f"{directory}: no linear layer to quantize (got --to {to}). Fix: choose another --to"
        )
    # No forward pass before saving: on some CPUs it repacks 4-bit weights, and the repacked weights
    # would be saved.
    model.save_pretrained(output)
    for file in output.glob("*.safetensors"):
        # `save_pretrained` makes them readable to their owner only.
        file.chmod(0o644)
    copy_tokenizer(directory, output)
    for card in directory.glob("README.md"):
        shutil.copy2(card, output / card.name)


def load_model(directory: Path, **options: Any) -> Any:
    """Load a language model from disk.

    Args:
        directory: directory of the model, in safetensors.
        options: further options of `from_pretrained`.

    Raises:
        MergeError: if the model cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    open_config(directory, MergeError)
    return open_model(
        AutoModelForCausalLM,
        directory,
        f"{directory}: cannot be loaded",
        "merge or copy the model again",
        MergeError,
        **options,
    )


def load_quantized(directory: Path) -> Any:
    """Load a quantized model in evaluation mode; weights that are not quantized are float32.

    Raises:
        MergeError: if the model cannot be loaded.
    """
    model = load_model(directory, dtype=torch.float32)
    list(guard_quantized_modules(model))
    return model.eval()
