"""The merge itself: tensor by tensor, shards in, shards out; the model is never loaded."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lora_kit.errors import MergeError
from lora_kit.files import whole_directory, write_json
from lora_kit.fingerprint import weight_files
from lora_kit.merging.lora import LoraUpdate, read_updates

INDEX = "model.safetensors.index.json"
COPIED = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.jinja")


@dataclass(frozen=True)
class MergePlan:
    """What is merged into what.

    Attributes:
        base: directory of the backbone's files.
        adapter: directory of the adapter.
        quantization: how the backbone was quantized in training.
        dtype: what it computed in, and what the merged weights are stored in.
        quantized_modules: names of the modules that were quantized.
        into: `dequantized` weights, as trained on, or the `original` ones of the files.
        shard_bytes: largest weight file.
        stop_token_ids: written into the generation configuration.
    """

    base: Path
    adapter: Path
    quantization: str
    dtype: str
    quantized_modules: tuple[str, ...]
    into: str
    shard_bytes: int
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote. Bytes of weights, seconds of wall time."""

    tensors: int
    merged: int
    dequantized: int
    weight_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def merge_stream(plan: MergePlan, output: Path) -> MergeResult:
    """Write the merged model to `output`, whole or not at all.

    Raises:
        MergeError: if a part of the adapter has no place in the backbone, or the disk is too small.
    """
    started = time.monotonic()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise MergeError(f"{output}: is there already and not empty; choose another --output")
    updates = read_updates(plan.adapter)
    files = weight_files(plan.base)
    keys = {key for file in files for key in _keys(file)}
    _require_places(plan, updates, keys)
    _require_disk(files, output)
    with whole_directory(output) as temporary:
        shards = _Shards(temporary, plan.shard_bytes)
        for key, tensor in _tensors(files):
            shards.add(key, _merged_tensor(key, tensor, plan, updates))
        total = shards.finish()
        _write_configuration(plan, temporary)
    return MergeResult(
        tensors=len(keys),
        merged=len(updates),
        dequantized=len(plan.quantized_modules) if plan.into == "dequantized" else 0,
        weight_bytes=total,
        seconds=time.monotonic() - started,
    )


def _keys(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as stream:
        return list(stream.keys())


def _tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for key in stream.keys():  # noqa: SIM118 - a safetensors file is no mapping
                yield key, stream.get_tensor(key)


def _merged_tensor(
    key: str, tensor: torch.Tensor, plan: MergePlan, updates: Mapping[str, LoraUpdate]
) -> torch.Tensor:
    """One tensor of the merged model: the sum in float32, one rounding at the end."""
    dtype: torch.dtype = getattr(torch, plan.dtype)
    if not tensor.is_floating_point():
        return tensor
    module = key.removesuffix(".weight")
    if plan.into == "dequantized" and module in plan.quantized_modules:
        tensor = dequantized(tensor.to(dtype), plan.quantization)
    update = updates.get(module)
    if update is None:
        return tensor.to(dtype)
    return (tensor.float() + update.delta()).to(dtype)


def dequantized(weight: torch.Tensor, quantization: str) -> torch.Tensor:
    """Quantize and dequantize a weight as loading it for training does.

    Args:
        weight: (out, in), in the dtype that the backbone computes in.
        quantization: `nf4`, `fp4` or `int8`.

    Returns:
        (out, in) in the same dtype, what the frozen layer multiplied with.
    """
    import bitsandbytes.functional as bnb

    from lora_kit.processes import process_state

    # The same kernels as in training: another device may round a tie otherwise.
    moved = weight.contiguous().to(process_state().device)
    if quantization == "int8":
        codes, scales, _ = bnb.int8_vectorwise_quant(moved.half())
        restored = codes.float() * scales[:, None] / 127
    else:
        codes, state = bnb.quantize_4bit(moved, quant_type=quantization, compress_statistics=True)
        restored = bnb.dequantize_4bit(codes, state)
    back: torch.Tensor = restored.to(weight.dtype).cpu()
    return back


def _require_places(plan: MergePlan, updates: Mapping[str, LoraUpdate], keys: set[str]) -> None:
    for noun, modules in (
        ("the adapter changes", sorted(updates)),
        ("training quantized", plan.quantized_modules),
    ):
        lost = [module for module in modules if f"{module}.weight" not in keys]
        if lost:
            raise MergeError(
                f"{plan.base}: {len(lost)} modules that {noun} have no weight in its files, the "
                f"first: {lost[0]}. Is this the backbone that the adapter was trained on?"
            )


def _require_disk(files: list[Path], output: Path) -> None:
    # Weights in the files may be half as wide as those that are written.
    wanted = 2 * sum(file.stat().st_size for file in files)
    place = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise MergeError(
            f"{output}: the disk has {free / 1e9:.1f} GB free, up to {wanted / 1e9:.1f} GB are "
            "needed; choose another --output"
        )


class _Shards:
    """Collects tensors and writes a file whenever the next one would be too large."""

    def __init__(self, directory: Path, limit: int):
        self._directory = directory
        self._limit = limit
        self._pending: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._written: list[tuple[Path, list[str]]] = []
        self._total = 0

    def add(self, key: str, tensor: torch.Tensor) -> None:
        if self._pending and self._bytes + tensor.nbytes > self._limit:
            self._flush()
        self._pending[key] = tensor.contiguous()
        self._bytes += tensor.nbytes

    def _flush(self) -> None:
        path = self._directory / f"part-{len(self._written)}.safetensors"
        save_file(self._pending, path, metadata={"format": "pt"})
        path.chmod(0o644)
        self._written.append((path, list(self._pending)))
        self._total += self._bytes
        self._pending, self._bytes = {}, 0

    def finish(self) -> int:
        """Name the files as transformers expects them; returns the bytes of all tensors."""
        if self._pending:
            self._flush()
        count = len(self._written)
        if count == 1:
            self._written[0][0].rename(self._directory / "model.safetensors")
            return self._total
        weight_map = {}
        for number, (path, keys) in enumerate(self._written, start=1):
            name = f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self._directory / name)
            weight_map.update(dict.fromkeys(keys, name))
        write_json(
            self._directory / INDEX,
            {"metadata": {"total_size": self._total}, "weight_map": weight_map},
        )
        return self._total


def _write_configuration(plan: MergePlan, directory: Path) -> None:
    config = json.loads((plan.base / "config.json").read_text())
    config.pop("quantization_config", None)
    config.pop("torch_dtype", None)
    # A directory of the machine that converted it means nothing to who loads it.
    config.pop("_name_or_path", None)
    write_json(directory / "config.json", config | {"dtype": plan.dtype})
    path = plan.base / "generation_config.json"
    generation = json.loads(path.read_text()) if path.is_file() else {}
    stops = list(plan.stop_token_ids)
    generation["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    write_json(directory / "generation_config.json", generation)
    for pattern in COPIED:
        for file in plan.base.glob(pattern):
            shutil.copy2(file, directory / file.name)
