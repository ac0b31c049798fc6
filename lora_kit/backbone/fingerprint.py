"""Identity of a backbone: hashes of weights, configuration and tokenizer, and weight storage."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE

from lora_kit.backbone.model_folder import require_inside
from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError, LoraKitError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.hash_cache import cached_sha256
from lora_kit.runtime.hashes import json_sha256


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a backbone; two backbones are the same if all fields are equal.

    Attributes:
        weights: sha256 of the weight files.
        config: sha256 of the configuration.
        tokenizer: sha256 of the tokenizer files.
        quantization: storage of the quantized weights, such as `nf4-bitsandbytes-double`.
        dtype: compute dtype.
    """

    weights: str
    config: str
    tokenizer: str
    quantization: str
    dtype: str

    @property
    def digest(self) -> str:
        """Return one sha256 over all fields, in hexadecimal."""
        return json_sha256(asdict(self))


def require_saved_fingerprint(
    value: Any, path: Path, error: type[LoraKitError], remedy: str
) -> None:
    """Refuse a value that is not a fingerprint as saved beside an adapter, with its digest.

    Args:
        value: value of the file's `fingerprint`.
        path: file that contains the value.
        error: class of the error.
        remedy: action for the user, in the imperative.

    Raises:
        error: naming the file and the missing fields.
    """
    names = [*(field.name for field in fields(Fingerprint)), "digest"]
    saved = value if isinstance(value, dict) else {}
    missing = [name for name in names if not isinstance(saved.get(name), str)]
    if missing:
        raise error(
            f"{path}: no valid fingerprint of the backbone (missing or not a text in "
            f"`fingerprint`: {', '.join(missing)}). Fix: {remedy}"
        )


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files that transformers loads from a model directory, sorted by name.

    Raises:
        BackboneError: if there is none, or if the index is malformed or names a file that is
            missing, no safetensors file or outside of the directory.
    """
    index, single = directory / SAFETENSORS_INDEX_FILE, directory / "model.safetensors"
    # Only indexed files: some repositories hold the same weights again under another name.
    files = _indexed_files(index) if index.is_file() else [single]
    for file in files:
        require_inside(file, directory, source=index if index.is_file() else None)
    missing = [file.name for file in files if not file.is_file()]
    if missing and index.is_file():
        raise BackboneError(
            f"{index}: names files that do not exist (first: {missing[0]}). Fix: complete the "
            "download or the copy"
        )
    shards = sorted(directory.glob("*-of-*.safetensors"))
    if missing and shards:
        raise BackboneError(
            f"{directory}: {SAFETENSORS_INDEX_FILE} is missing, which says which tensor is in "
            f"which file (got {len(shards)} shards, the first: {shards[0].name}). Fix: complete "
            "the download or the copy"
        )
    if missing or not files:
        raise BackboneError(
            f"{directory}: no model.safetensors; other formats can contain code and are not "
            "loaded. Fix: convert the weights, for example with save_pretrained"
        )
    # transformers reads the index only without this file.
    return [single] if single.is_file() else files


def _indexed_files(index: Path) -> list[Path]:
    names = read_json(index, BackboneError).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BackboneError(
            f"{index}: weight_map: no object that names the file of each tensor (got "
            f"{names!r:.80}). Fix: restore the file from the model's source"
        )
    for tensor, name in names.items():
        if not isinstance(name, str) or Path(name).suffix != ".safetensors":
            raise BackboneError(
                f"{index}: weight_map: {tensor!r:.80}: no name of a safetensors file; other "
                f"formats can contain code and are not loaded (got {name!r:.80}). Fix: convert the "
                "weights, for example with save_pretrained"
            )
    return sorted(index.parent / name for name in set(names.values()))


def fingerprint(
    directory: Path, weights: list[Path], spec: BackboneSpec, dtype: torch.dtype
) -> Fingerprint:
    """Compute the fingerprint of a model directory under a spec.

    Args:
        directory: model directory.
        weights: weight files, as returned by `weight_files`.
        spec: backbone section of the recipe.
        dtype: compute dtype.
    """
    tokenizer = [
        path
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "*.jinja")
        for path in sorted(directory.glob(name))
    ]
    config = read_json(directory / "config.json", BackboneError)
    # The version of the library that wrote the file does not change the model.
    config.pop("transformers_version", None)
    storage = "none" if spec.quantization == "none" else f"{spec.quantization}-bitsandbytes"
    return Fingerprint(
        weights=_hash_files(weights),
        config=json_sha256(config),
        tokenizer=_hash_files(tokenizer),
        quantization=storage + ("-double" if spec.quantization in ("nf4", "fp4") else ""),
        dtype=str(dtype).removeprefix("torch."),
    )


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path, of_file in zip(paths, cached_sha256(paths), strict=True):
        digest.update(f"{path.name}\0{of_file}\n".encode())
    return digest.hexdigest()
