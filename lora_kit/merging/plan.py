"""The plan of a merge, and its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MergePlan:
    """What is merged into what.

    Attributes:
        base: directory of the backbone's files.
        adapter: directory of the adapter; `None` to dequantize alone.
        quantization: how the backbone was quantized in training.
        dtype: what it computed in.
        quantized_modules: names of the modules that were quantized.
        into: `dequantized` weights, as trained on, or the `original` ones of the files.
        stored_dtype: what the merged weights are stored in.
        shard_bytes: largest weight file.
        stop_token_ids: written into the generation configuration.
    """

    base: Path
    adapter: Path | None
    quantization: str
    dtype: str
    quantized_modules: tuple[str, ...]
    into: str
    stored_dtype: str
    shard_bytes: int
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote.

    Attributes:
        tensors: in the files.
        merged: parameters that the adapter changed or replaced.
        dequantized: parameters that were quantized and dequantized as in training.
        untied: parameters that were one in the backbone and are two now.
        weight_bytes: of all tensors.
        untouched: tensors that are the backbone's, but for the dtype.
        kept_shards: files that an earlier merge, cut off, had written already.
        in_memory: whether the whole model went through PEFT.
        seconds: of wall time.
    """

    tensors: int
    merged: int
    dequantized: int
    untied: tuple[str, ...]
    untouched: tuple[str, ...]
    weight_bytes: int
    kept_shards: int
    in_memory: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON; of the untouched, how many."""
        return asdict(self) | {"untouched": len(self.untouched)}
