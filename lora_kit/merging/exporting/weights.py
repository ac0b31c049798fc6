"""Compare the weights of a GGUF file with those of its model, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.tensors import StoredTensor, stored_by_key

# Largest relative error of a tensor (root of the summed squares) that rounding to a type causes.
ROUNDING = {
    "F32": 1e-6,
    "F16": 1e-3,
    "BF16": 3e-3,
    "Q8_0": 1.5e-2,
    "Q6_K": 4e-2,
    "Q5_K": 8e-2,
    "Q4_K": 0.15,
}
# Divisor for tensors of zeros.
SMALLEST = 1e-30


@dataclass(frozen=True)
class WeightComparison:
    """Comparison of the tensors of an export with those of its model, paired by name.

    Attributes:
        same: number of tensors with the same values, up to the rounding of their type.
        reordered: number of tensors with the same values in another order, which may be that of
            llama.cpp or a wrong one.
        different: names of the tensors with other values.
        not_compared: names of tensors, of the model or of the file, without a partner.
        texts: number of texts that were tokenized.
        same_tokens: number of these with the same tokens.
    """

    same: int
    reordered: int
    different: tuple[str, ...]
    not_compared: tuple[str, ...]
    texts: int
    same_tokens: int


def compare_weights(directory: Path, reader: Any, texts: int, same_tokens: int) -> WeightComparison:
    """Compare the weights of a GGUF file with those in a directory, one tensor at a time.

    Args:
        directory: directory of the model, in safetensors.
        reader: `gguf.GGUFReader` of the file.
        texts: number of texts that were tokenized.
        same_tokens: number of these with the same tokens.
    """
    stored = stored_by_key(weight_files(directory))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    pairs = dict(_pairs(stored, tensors, reader))
    kinds: dict[str, list[str]] = {"same": [], "reordered": [], "different": []}
    for key, tensor in pairs.items():
        kinds[_compare(stored[key], tensor)].append(key)
    named = {tensor.name for tensor in pairs.values()}
    return WeightComparison(
        same=len(kinds["same"]),
        reordered=len(kinds["reordered"]),
        different=tuple(kinds["different"]),
        not_compared=(*sorted(set(stored) - set(pairs)), *sorted(set(tensors) - named)),
        texts=texts,
        same_tokens=same_tokens,
    )


def _pairs(
    stored: Mapping[str, StoredTensor], tensors: Mapping[str, Any], reader: Any
) -> Iterator[tuple[str, Any]]:
    """Yield key and tensor of the file, by the names that llama.cpp gives to those of a model."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = reader.fields["general.architecture"].contents()
    known = {name: value for value, name in MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        return
    blocks = reader.fields.get(f"{architecture}.block_count")
    names = get_tensor_name_map(known[architecture], int(blocks.contents()) if blocks else 0)
    for key in stored:
        tensor = tensors.get(names.get_name(key, try_suffixes=(".weight", ".bias")) or "")
        if tensor is not None and tensor.tensor_type.name in ROUNDING:
            yield key, tensor


def _compare(stored: StoredTensor, tensor: Any) -> str:
    from gguf import dequantize

    model = stored.read().float().numpy()
    file = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if file.size != model.size or not np.isfinite(file).all():
        return "different"
    limit = ROUNDING[tensor.tensor_type.name]
    if file.shape == model.shape and _relative_error(file, model) <= limit:
        return "same"
    if _relative_error(np.sort(file, axis=None), np.sort(model, axis=None)) <= limit:
        return "reordered"
    return "different"


def _relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    error = float(np.linalg.norm(values.ravel() - expected.ravel()))
    return error / max(float(np.linalg.norm(expected)), SMALLEST)
