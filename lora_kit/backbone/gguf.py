"""Conversion of GGUF files to safetensors, cached by the hash of their content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_kit.backbone.open_files import open_gguf, open_tokenizer, refusing
from lora_kit.backbone.pre_tokenizers import PRE_TOKENIZERS
from lora_kit.runtime.cache import cache_directory
from lora_kit.runtime.errors import BackboneError
from lora_kit.runtime.files import read_json, shared_directory, write_json
from lora_kit.runtime.hash_cache import cached_sha256
from lora_kit.runtime.locks import one_process_at_a_time

# Version of the conversion, part of the cache key. Raise it when the conversion changes.
CONVERSION = "3"

# Vocabularies that are no byte-level BPE and have no pre-tokenizer, or one that is always the same.
WITHOUT_PRE_TOKENIZER = ("llama", "t5", "gemma4")
MODEL_KEY, PRE_KEY = "tokenizer.ggml.model", "tokenizer.ggml.pre"


def convert_gguf(path: Path) -> Path:
    """Convert a GGUF file to safetensors, and return the cached directory.

    The weights are dequantized to float32 exactly. transformers treats a GGUF model that is loaded
    directly as quantized, so it can neither be saved nor quantized again.

    Raises:
        BackboneError: if transformers cannot read the file as GGUF, or the file does not name a
            known pre-tokenizer.
    """
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise BackboneError(
                f"{path}: not a GGUF file (its first four bytes are not `GGUF`). Fix: download it "
                "again, or name another file"
            )
    (digest,) = cached_sha256([path])
    target = cache_directory() / "gguf" / f"{digest}-{CONVERSION}"
    if target.is_dir():
        _pre_tokenizer_name(path)
        return target
    with _refusing_unreadable(path):
        _require_plausible_blocks(path)
    with one_process_at_a_time(target):
        # Another process of this machine may have converted it meanwhile.
        if not target.is_dir():
            with shared_directory(target) as temporary:
                _convert(path, _pre_tokenizer_name(path), temporary)
    return target


def _pre_tokenizer_name(path: Path) -> str | None:
    """Return the name of a file's pre-tokenizer; `None` for a vocabulary that has none.

    Raises:
        BackboneError: if a byte-level BPE vocabulary names none, or one that is not known: text
            would become other tokens than those that the model was trained on.
    """
    from transformers.integrations.gguf import read_gguf_metadata

    with _refusing_unreadable(path):
        metadata, _ = read_gguf_metadata(str(path), (MODEL_KEY, PRE_KEY))
    model, name = metadata.get(MODEL_KEY), metadata.get(PRE_KEY)
    if model in WITHOUT_PRE_TOKENIZER:
        return None
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise BackboneError(
            f"{path}: {PRE_KEY}: not a pre-tokenizer that is known here, so that text would become "
            f"other tokens than in the training of the model (got {_shown(name)} with {MODEL_KEY} "
            f"{_shown(model)}; known: {', '.join(PRE_TOKENIZERS)}). Fix: use the checkpoint in "
            "safetensors that the file was made from, or convert it again with a current llama.cpp"
        )
    return name


def _shown(value: object) -> str:
    return "nothing" if value is None else f"{value!r:.60}"


@contextmanager
def _refusing_unreadable(path: Path) -> Iterator[None]:
    with refusing(
        f"{path}: transformers cannot read this GGUF file",
        "use the checkpoint in safetensors that the file was made from",
    ):
        yield


def _convert(path: Path, pre_tokenizer: str | None, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    with _refusing_unreadable(path):
        # First: a file without its metadata would give a model of transformers' default size.
        tokenizer = open_gguf(AutoTokenizer, path)
        if not _block_counts(path):
            raise BackboneError(
                f"{path}: block_count: missing, as the file's other dimensions may be (got no such "
                "key). Fix: download it again"
            )
        model = open_gguf(
            AutoModelForCausalLM,
            path,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    # A saved quantization_config would mark every copy as not trainable.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    # How it was opened is no part of a tokenizer, and would count in its fingerprint.
    tokenizer.init_kwargs["local_files_only"] = False
    tokenizer.save_pretrained(directory)
    if pre_tokenizer is not None:
        _set_pre_tokenizer(pre_tokenizer, directory)
        if not _reads_its_file(directory):
            raise BackboneError(
                f"{path}: {PRE_KEY}: transformers gives a model of type "
                f"{model.config.model_type} the pre-tokenizer of its own family (got "
                f"{pre_tokenizer!r}). Fix: use the checkpoint in safetensors that the file was "
                "made from"
            )


def _require_plausible_blocks(path: Path) -> None:
    """Refuse more blocks than tensors; building so many takes for ever."""
    for name, (count, tensors) in _block_counts(path).items():
        if not isinstance(count, int) or count > tensors:
            raise BackboneError(
                f"{path}: {name}: the weights are of a smaller model (got {count!r:.80}, the file "
                f"has {tensors:,} tensors). Fix: download it again"
            )


def _block_counts(path: Path) -> dict[str, tuple[object, int]]:
    """Return the number of blocks by key, each with the number of tensors of the file."""
    from transformers.integrations.gguf import read_gguf_metadata

    # `GGUFReader` takes 2.5 s for the words of a vocabulary, which this function leaves out.
    metadata, tensors = read_gguf_metadata(str(path), (MODEL_KEY,))
    return {
        name: (value, len(tensors))
        for name, value in metadata.items()
        if name.endswith(".block_count")
    }


def _set_pre_tokenizer(name: str, directory: Path) -> None:
    """Write a pre-tokenizer to a converted tokenizer.

    transformers 5.23 knows some names and ignores the others. SmolLM2's splits numbers into digits;
    without it, numbers become tokens that the model was not trained on.
    """
    path = directory / "tokenizer.json"
    file = read_json(path, BackboneError)
    file["pre_tokenizer"], file["model"]["ignore_merges"] = PRE_TOKENIZERS[name]
    write_json(path, file)
    if not _reads_its_file(directory):
        # Such as Qwen2Tokenizer, which sets the pre-tokenizer of its own family.
        config = directory / "tokenizer_config.json"
        generic = {"tokenizer_class": "TokenizersBackend"}
        write_json(config, read_json(config, BackboneError) | generic)


def _reads_its_file(directory: Path) -> bool:
    """Return True if a tokenizer's class takes pre-tokenizer and `ignore_merges` from the file."""
    from tokenizers import Tokenizer

    def parts(tokenizer: Tokenizer) -> tuple[object, object]:
        value = json.loads(tokenizer.to_str())
        return value["pre_tokenizer"], value["model"]["ignore_merges"]

    loaded = open_tokenizer(directory)
    written = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return parts(loaded.backend_tokenizer) == parts(written)
