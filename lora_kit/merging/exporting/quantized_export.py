"""Export a model to a directory in 4 or 8 bits, written by bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.exporting.comparison import compare_with_model, comparison_examples
from lora_kit.merging.exporting.quantized import load_quantized, write_quantized
from lora_kit.merging.exporting.result import ExportResult, export_result
from lora_kit.runtime.files import whole_directory, write_json

RECORD = "export.json"


def export_quantized(
    directory: Path,
    to: Literal["nf4", "int8"],
    tokenizer: Any,
    output: Path,
    texts: Sequence[str],
) -> ExportResult:
    """Write a quantized directory, read it back and compare it with the model.

    Args:
        directory: directory of the model, in safetensors.
        to: quantization.
        tokenizer: tokenizer of the model.
        output: directory to write, the record inside.
        texts: texts to compare on.

    Raises:
        MergeError: if the model cannot be quantized; nothing is written then.
    """
    examples = comparison_examples(tokenizer, texts)
    with whole_directory(output) as temporary:
        write_quantized(directory, to, temporary)
        # No texts to tokenize: the tokenizer's files are copies.
        comparison = compare_with_model(
            directory, lambda: load_quantized(temporary), examples, 0, 0
        )
        files = {file.name: file for file in sorted(temporary.iterdir())}
        size = sum(file.stat().st_size for file in weight_files(temporary))
        result = export_result(output, to, to, size, files, directory, comparison)
        write_json(temporary / RECORD, result.to_dict())
    return result
