"""Plan of a merge, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MergePlan:
    """Inputs and options of a merge.

    Attributes:
        base: directory of the backbone's files.
        adapter: directory of the adapter; `None` to dequantize only.
        quantization: quantization of the backbone in training.
        dtype: dtype that the backbone computed in.
        quantized_modules: names of the modules that were quantized.
        into: `dequantized` for the weights as trained on, `original` for those of the files.
        stored_dtype: dtype of the merged weights.
        shard_bytes: largest size of a weight file, in bytes.
        stop_token_ids: stop tokens, written into the generation configuration.
        own_tokenizer: if true, the adapter's tokenizer is written instead of the backbone's.
        masked: if true, the model is a masked language model. Its head may be in the adapter alone.
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
    own_tokenizer: bool = False
    masked: bool = False


@dataclass(frozen=True)
class MergeResult:
    """Summary of the files that a merge wrote.

    Attributes:
        tensors: number of tensors in the files.
        merged: number of parameters that the adapter changed or replaced.
        dequantized: number of parameters that were quantized and dequantized as in training.
        untied: names of parameters that are tied in the backbone and separate now.
        untouched: names of the tensors that equal the backbone's, up to the dtype.
        renamed: name in the backbone's files of each of these that has another name.
        weight_bytes: number of bytes of all tensors.
        kept_shards: number of files reused from an earlier, interrupted merge.
        in_memory: true if PEFT merged the whole model in memory.
        seconds: wall time, in seconds.
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
    renamed: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON, with counts of `untouched` and `renamed`."""
        counts = {"untouched": len(self.untouched), "renamed": len(self.renamed)}
        return asdict(self) | counts
