"""Conversion of GGUF files to safetensors, cached by the hash of their content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_kit.backbone.open_files import open_gguf, refusing
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.errors import BackboneError
from lora_kit.runtime.files import read_json, shared_directory, write_json
from lora_kit.runtime.hashes import file_sha256

# Version of the conversion, part of the cache key. Raise it when the conversion changes.
CONVERSION = "2"

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

# Pre-tokenizers by the name in a GGUF file, each with the tokenizer's `ignore_merges`. The file
# stores only the name; llama.cpp holds the regular expressions (`llama-vocab.cpp`). Listed are
# those of Llama-architecture models.
PRE_TOKENIZERS: Mapping[str, tuple[dict[str, Any], bool]] = {
    "gpt-2": (_BYTES, False),
    "smollm": (
        {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
        },
        False,
    ),
    "llama-bpe": (
        {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _LLAMA3},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _BYTES | {"use_regex": False},
            ],
        },
        True,
    ),
}


def convert_gguf(path: Path) -> Path:
    """Convert a GGUF file to safetensors, and return the cached directory.

    The weights are dequantized to float32 exactly. transformers treats a GGUF model that is loaded
    directly as quantized, so it can neither be saved nor quantized again.

    Raises:
        BackboneError: if transformers cannot read the file as GGUF.
    """
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise BackboneError(
                f"{path}: not a GGUF file (its first four bytes are not `GGUF`). Fix: download it "
                "again, or name another file"
            )
    digest = file_sha256(path)
    target = cache_directory() / "gguf" / f"{digest}-{CONVERSION}"
    if target.is_dir():
        return target
    with shared_directory(target) as temporary:
        _convert(path, temporary)
    return target


def _convert(path: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    with refusing(
        f"{path}: transformers cannot read this GGUF file",
        "use the checkpoint in safetensors that the file was made from",
    ):
        model = open_gguf(
            AutoModelForCausalLM,
            path,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = open_gguf(AutoTokenizer, path)
    # A saved quantization_config would mark every copy as not trainable.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _set_pre_tokenizer(path, directory / "tokenizer.json")


def _set_pre_tokenizer(path: Path, tokenizer: Path) -> None:
    """Write the GGUF file's pre-tokenizer to a tokenizer.json.

    transformers 5.23 does not read the pre-tokenizer's name. SmolLM2's splits numbers into digits;
    without it, numbers become tokens that the model was not trained on.
    """
    from gguf import GGUFReader

    field = GGUFReader(path).fields.get("tokenizer.ggml.pre")
    known = PRE_TOKENIZERS.get(str(field.contents())) if field else None
    if known is None or not tokenizer.is_file():
        return
    file = read_json(tokenizer, BackboneError)
    file["pre_tokenizer"], file["model"]["ignore_merges"] = known
    write_json(tokenizer, file)
