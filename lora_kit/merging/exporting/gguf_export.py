"""Export a model to a GGUF file, by our own writer or llama.cpp's, with a Modelfile for Ollama."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import jinja2

from lora_kit.backbone.chat_template import render_chat
from lora_kit.data.supervision import Example
from lora_kit.merging.exporting.comparison import (
    HARD_TEXTS,
    ExportComparison,
    compare_export,
    compare_with_model,
    comparison_examples,
    count_same_tokens,
    load_gguf,
    model_log_probabilities,
)
from lora_kit.merging.exporting.formats import GgufFileType, GgufType, KQuantType
from lora_kit.merging.exporting.gguf_writers import GgufWriter, gguf_writer, open_reader
from lora_kit.merging.exporting.k_quants import QUANTIZE, quantize_gguf
from lora_kit.merging.exporting.modelfile import adds_start, build_modelfile, modelfile_of
from lora_kit.merging.exporting.result import ExportResult, export_result
from lora_kit.merging.exporting.weights import WeightComparison, compare_weights
from lora_kit.merging.predictions import predict_log_probabilities
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import whole_file, write_json, write_text
from lora_kit.runtime.hashes import file_sha256
from lora_kit.runtime.llama_cpp import find_llama_cpp


def export_gguf(
    directory: Path,
    config: Any,
    tokenizer: Any,
    type_: GgufFileType,
    output: Path,
    texts: Sequence[str],
    llama_cpp: Path | None,
) -> ExportResult:
    """Write a GGUF file, read it back and compare it with the model.

    Args:
        directory: directory of the model, in safetensors.
        config: configuration of transformers.
        tokenizer: tokenizer of the model.
        type_: type of the matrices.
        output: file to write; its record and a Modelfile go beside it.
        texts: texts to compare on.
        llama_cpp: folder of llama.cpp; by default its programs are on the PATH.

    Raises:
        MergeError: if the model cannot be exported; nothing is written then.
    """
    write = gguf_writer(directory, config, tokenizer, output.stem, llama_cpp)
    quantize = None
    if type_ in get_args(KQuantType):
        quantize = find_llama_cpp(llama_cpp, QUANTIZE, MergeError)
    examples = comparison_examples(tokenizer, texts)
    tokenized = (*texts, *HARD_TEXTS, *_texts_with_special_tokens(tokenizer))
    with whole_file(output) as temporary:
        _write(write, type_, quantize, temporary)
        reader = open_reader(temporary)
        read_back = _compare_gguf if write.converter is None else _compare_converted
        comparison, warnings = read_back(
            directory, temporary, reader, examples, tokenizer, tokenized
        )
        modelfile = build_modelfile(directory, tokenizer, output.name, adds_start(reader))
        beside = modelfile_of(output)
        written = temporary.with_name(beside.name)
        written.write_text(modelfile.text, encoding="utf-8")
        size = temporary.stat().st_size
        files = {output.name: temporary, beside.name: written}
        result = export_result(output, "gguf", type_, size, files, directory, comparison)
        result = replace(
            result, converter=write.converter, warnings=(*warnings, *modelfile.warnings)
        )
        # Without a record, the files may be an export that was killed, or somebody else's.
        for path in (output, beside):
            if path.exists() and file_sha256(path) != result.files[path.name]:
                raise MergeError(
                    f"{path}: already exists, and is not this export (got a file without "
                    f"{record_of(output).name}). Fix: choose another --output"
                )
        # The record comes first: a record without its file is replaced by the next export.
        write_json(record_of(output), result.to_dict())
        write_text(beside, modelfile.text)
    return result


def _write(write: GgufWriter, type_: GgufFileType, quantize: Path | None, output: Path) -> None:
    whole = output.with_name("whole.gguf")
    write("f32" if quantize else cast(GgufType, type_), whole)
    if quantize:
        quantize_gguf(quantize, whole, type_, output)
    else:
        whole.replace(output)


def _compare_gguf(
    directory: Path,
    path: Path,
    reader: Any,
    examples: Sequence[Example],
    tokenizer: Any,
    texts: Sequence[str],
) -> tuple[ExportComparison, tuple[str, ...]]:
    same = count_same_tokens(path, reader, tokenizer, texts)
    found = compare_with_model(
        directory, lambda: load_gguf(path, reader), examples, len(texts), same
    )
    return found, ()


def _compare_converted(
    directory: Path,
    path: Path,
    reader: Any,
    examples: Sequence[Example],
    tokenizer: Any,
    texts: Sequence[str],
) -> tuple[ExportComparison | WeightComparison, tuple[str, ...]]:
    """Compare as far as the file can be read back, and say what was not compared."""
    expected = model_log_probabilities(directory, examples)
    warnings, counted = [], len(texts)
    try:
        same = count_same_tokens(path, reader, tokenizer, texts)
    except MergeError as error:
        same = counted = 0
        warnings.append(f"tokens were not compared: {_without_remedy(error)}")
    try:
        export = load_gguf(path, reader)
    except MergeError as error:
        warnings.append(
            "distributions were not compared, the weights were: " + _without_remedy(error)
        )
        return compare_weights(directory, reader, counted, same), tuple(warnings)
    found = predict_log_probabilities(export, examples)
    return compare_export(expected, found, counted, same), tuple(warnings)


def _without_remedy(error: MergeError) -> str:
    return str(error).partition(". Fix: ")[0]


def record_of(output: Path) -> Path:
    """Return the path of a GGUF file's record."""
    return output.with_name(f"{output.name}.json")


def _texts_with_special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return a text with every special token inside, and a chat where there is a template."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    names = " ".join(["a", *added, "b"])
    if not tokenizer.chat_template:
        return (names,)
    chat = [{"role": "user", "content": "2 + 2?"}]
    try:
        return (names, render_chat(tokenizer, chat, add_generation_prompt=True))
    except (jinja2.TemplateError, ValueError) as error:
        raise MergeError(
            f"{tokenizer.name_or_path}: the chat template rejects a question ({error}). Fix: "
            "correct the template"
        ) from error
