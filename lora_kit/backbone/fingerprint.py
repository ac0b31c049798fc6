"""What makes two backbones the same: hashes of weights, configuration, tokenizer; storage."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.errors import BackboneError, LoraKitError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.hashes import file_sha256, json_sha256


@dataclass(frozen=True)
class Fingerprint:
    """What makes two backbones the same: sha256 of each part, and how the weights are stored."""

    weights: str
    config: str
    tokenizer: str
    quantization: str
    dtype: str

    @property
    def digest(self) -> str:
        """One sha256 over all parts."""
        return json_sha256(asdict(self))


def require_saved(found: Any, path: Path, error: type[LoraKitError], remedy: str) -> None:
    """Refuse what is no fingerprint as it is saved beside an adapter: its parts and their digest.

    Raises:
        error: naming the file and what of it is missing.
    """
    parts = [*(field.name for field in fields(Fingerprint)), "digest"]
    said = found if isinstance(found, dict) else {}
    lacking = [part for part in parts if not isinstance(said.get(part), str)]
    if lacking:
        raise error(
            f"{path}: has no fingerprint of the backbone: {', '.join(lacking)} of `fingerprint` "
            f"{'is' if len(lacking) == 1 else 'are'} missing, or no text; {remedy}"
        )


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in order of their names.

    Raises:
        BackboneError: if there is none.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        # Some repositories hold the same weights a second time under another name.
        names = set(read_json(index, BackboneError).get("weight_map", {}).values())
        files = sorted(directory / str(name) for name in names)
    else:
        files = [directory / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if missing and index.is_file():
        raise BackboneError(f"{directory}: its index names files that are not there: {missing[0]}")
    if missing or not files:
        raise BackboneError(
            f"{directory}: no model.safetensors; weights in other formats can carry code and are "
            "not loaded. Convert them, for example with save_pretrained"
        )
    return files


def fingerprint(
    directory: Path, weights: list[Path], spec: BackboneSpec, dtype: torch.dtype
) -> Fingerprint:
    """The fingerprint of a model directory under a spec."""
    tokenizer = [
        path
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "*.jinja")
        for path in sorted(directory.glob(name))
    ]
    storage = "none" if spec.quantization == "none" else f"{spec.quantization}-bitsandbytes"
    return Fingerprint(
        weights=_hash_files(weights),
        config=_hash_config(directory / "config.json"),
        tokenizer=_hash_files(tokenizer),
        quantization=storage + ("-double" if spec.quantization in ("nf4", "fp4") else ""),
        dtype=str(dtype).removeprefix("torch."),
    )


def _hash_config(path: Path) -> str:
    """The sha256 of a configuration but for the version of the library that wrote it."""
    config = read_json(path, BackboneError)
    config.pop("transformers_version", None)
    return json_sha256(config)


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()
