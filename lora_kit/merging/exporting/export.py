"""Export a model directory to another format, read the export back and compare the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.backbone.fingerprint import weight_files
from lora_kit.backbone.open_files import open_config, open_tokenizer
from lora_kit.merging.exporting.comparison import default_texts
from lora_kit.merging.exporting.formats import ExportFormat, GgufFileType
from lora_kit.merging.exporting.gguf_export import export_gguf, record_of
from lora_kit.merging.exporting.quantized_export import export_quantized
from lora_kit.merging.exporting.result import ExportResult
from lora_kit.runtime.errors import MergeError


def export(
    directory: Path,
    to: ExportFormat,
    output: Path,
    type_: GgufFileType | None = None,
    texts: Sequence[str] = (),
    llama_cpp: Path | None = None,
) -> ExportResult:
    """Write a model in another format, read the export back from disk and compare the two.

    Model and export compute in float32, one after the other: four bytes of memory a parameter.

    Args:
        directory: model directory with `config.json`, safetensors and tokenizer, such as a merge
            writes.
        to: `gguf` for a file, `nf4` or `int8` for a quantized directory.
        output: file or directory to write; the record goes beside or into it, and a Modelfile for
            Ollama beside a GGUF file.
        type_: type of a GGUF file's matrices, by default `f16`; one of `KQuantType` is written by
            llama.cpp's `llama-quantize`, from float32.
        texts: texts to compare on; by default passages of the Python reference.
        llama_cpp: folder of llama.cpp's programs, or a checkout with its converter, which writes
            the models that are not written here; by default they are on the PATH.

    Raises:
        MergeError: if the model cannot be exported; nothing is written then.
    """
    if type_ is not None and to != "gguf":
        raise MergeError(f"--type: only for --to gguf (got --to {to}). Fix: drop --type")
    is_unrecorded = to == "gguf" and output.is_file() and not record_of(output).exists()
    if output.exists() and not is_unrecorded:
        raise MergeError(
            f"{output}: already exists (got a file or directory). Fix: choose another --output"
        )
    config, tokenizer = _open(directory)
    if config.is_encoder_decoder:
        raise MergeError(
            f"{directory}: encoder-decoder models have no export format (got "
            f"{config.model_type}). Fix: use the directory itself; AutoModelForSeq2SeqLM loads it"
        )
    if getattr(config, "quantization_config", None):
        raise MergeError(
            f"{directory}: model is already quantized (got a quantization_config). Fix: export the "
            "merged model"
        )
    texts = texts or default_texts()
    if to == "gguf":
        type_ = type_ or "f16"
        return export_gguf(directory, config, tokenizer, type_, output, texts, llama_cpp)
    return export_quantized(directory, to, tokenizer, output, texts)


def _open(directory: Path) -> tuple[Any, Any]:
    if not (directory / "config.json").is_file():
        raise MergeError(
            f"{directory}: no model directory (got no config.json). Fix: give the directory of a "
            "merged model"
        )
    weight_files(directory)
    return open_config(directory, MergeError), open_tokenizer(directory, MergeError)
