"""A merged model stored in 4 or 8 bits, as transformers loads it with bitsandbytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lora_kit.backbone.load import guard_quantized_modules, quantization_config
from lora_kit.recipe.backbone import BackboneSpec, Quantization
from lora_kit.runtime.errors import MergeError

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.jinja", "README.md",
)  # fmt: skip


def write_quantized(directory: Path, to: Quantization, output: Path) -> None:
    """Quantize a model as loading it would, and save the codes.

    Args:
        directory: of the model, in safetensors.
        to: kind of numbers; `nf4` with double quantization, as in training.
        output: an empty directory.

    Raises:
        MergeError: if no layer was quantized.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    dtype = config.dtype or torch.float32
    spec = BackboneSpec(model=str(directory), quantization=to)
    model = load_model(directory, dtype=dtype, quantization_config=quantization_config(spec, dtype))
    if not list(guard_quantized_modules(model)):
        raise MergeError(f"{directory}: {to} reached no linear layer")
    # No forward before this: on some CPUs it repacks 4-bit weights, which would be saved so.
    model.save_pretrained(output)
    for file in output.glob("*.safetensors"):
        # Only their owner could read them.
        file.chmod(0o644)
    for pattern in TOKENIZER_FILES:
        for file in directory.glob(pattern):
            shutil.copy2(file, output / file.name)


def load_model(directory: Path, **options: Any) -> Any:
    """A model from disk.

    Raises:
        MergeError: if it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            directory, use_safetensors=True, local_files_only=True, **options
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise MergeError(f"{directory}: cannot be loaded: {error}") from error


def load_quantized(directory: Path) -> Any:
    """A quantized model from disk, what is not quantized in float32."""
    model = load_model(directory, dtype=torch.float32)
    list(guard_quantized_modules(model))
    return model.eval()
