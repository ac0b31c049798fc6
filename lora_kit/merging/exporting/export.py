"""Export a model directory to another format, read the export back and compare the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import jinja2
import torch
from safetensors import SafetensorError

from lora_kit.backbone.chat_template import render_chat
from lora_kit.backbone.fingerprint import weight_files
from lora_kit.backbone.open_files import open_config, open_tokenizer
from lora_kit.data.supervision import Example
from lora_kit.merging.exporting.comparison import (
    HARD_TEXTS,
    ExportComparison,
    compare_export,
    comparison_examples,
    count_same_tokens,
    default_texts,
    load_gguf,
)
from lora_kit.merging.exporting.formats import (
    ExportFormat,
    GgufFileType,
    GgufType,
    KQuantType,
)
from lora_kit.merging.exporting.gguf_writers import GgufWriter, gguf_writer, open_reader
from lora_kit.merging.exporting.k_quants import QUANTIZE, quantize_gguf
from lora_kit.merging.exporting.modelfile import adds_start, build_modelfile, modelfile_of
from lora_kit.merging.exporting.quantized import load_model, load_quantized, write_quantized
from lora_kit.merging.exporting.weights import WeightComparison, compare_weights
from lora_kit.merging.predictions import predict_log_probabilities
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import whole_directory, whole_file, write_json, write_text
from lora_kit.runtime.hashes import file_sha256
from lora_kit.runtime.llama_cpp import find_llama_cpp

RECORD = "export.json"


@dataclass(frozen=True)
class ExportTolerances:
    """Largest differences between an export and its model.

    Attributes:
        least_agreement: least share of positions with the same most likely token.
        most_mean_kl: largest mean KL divergence, in nats a token.
    """

    least_agreement: float
    most_mean_kl: float


# Rounding alone, measured on a float32 model of 135M parameters (512 positions of prose), where it
# weighs more than on larger models: f32 100% and 0 nats, f16 99.6% and 4e-6, bf16 99.4% and 1e-4,
# q8_0 98.0% and 1.4e-3, q6_k 94.1% and 5e-3, q5_k_m 86.7% and 0.035, q4_k_m 84.0% and 0.058, int8
# 89.6% and 0.027, nf4 68.8% and 0.32. The tolerances are meant to catch broken exports, such as
# query and key rows in another order (41% and 1.4 nats), not coarse ones.
TOLERANCES = {
    "f32": ExportTolerances(0.999, 1e-6),
    "f16": ExportTolerances(0.98, 1e-4),
    "bf16": ExportTolerances(0.97, 1e-3),
    "q8_0": ExportTolerances(0.94, 1e-2),
    "q6_k": ExportTolerances(0.9, 3e-2),
    "q5_k_m": ExportTolerances(0.75, 0.15),
    "q4_k_m": ExportTolerances(0.7, 0.25),
    "int8": ExportTolerances(0.8, 0.15),
    "nf4": ExportTolerances(0.5, 1.0),
}


@dataclass(frozen=True)
class ExportResult:
    """Record of an export.

    Attributes:
        path: file or directory that was written.
        to: export format.
        type: type of the matrices.
        weight_bytes: size of the file, or of the weights in the directory, in bytes.
        files: sha256 of each file that was written, by name; for GGUF, also of the Modelfile.
        model: sha256 of each weight file of the model, by name.
        comparison: distance of the export from the model; of the weights only for a file of
            llama.cpp's converter that transformers cannot read.
        limits: tolerances that the export was held to.
        passed: true if the distance is within the tolerances, or no compared tensor differs, and
            every text has the same tokens.
        warnings: comparisons that were not made, differences of the Modelfile's template from the
            model's, and parts left out.
        converter: llama.cpp's converter, if that wrote the file.
    """

    path: Path
    to: ExportFormat
    type: str
    weight_bytes: int
    files: dict[str, str]
    model: dict[str, str]
    comparison: ExportComparison | WeightComparison
    limits: ExportTolerances
    passed: bool
    warnings: tuple[str, ...] = ()
    converter: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON."""
        converter = None if self.converter is None else self.converter.name
        return asdict(self) | {"path": self.path.name, "converter": converter}


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
    is_unrecorded = to == "gguf" and output.is_file() and not _record_of(output).exists()
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
        kind = type_ or "f16"
        write = gguf_writer(directory, config, tokenizer, output.stem, llama_cpp)
        quantize = None
        if kind in get_args(KQuantType):
            quantize = find_llama_cpp(llama_cpp, QUANTIZE, MergeError)
        return _to_gguf(directory, tokenizer, kind, output, texts, write, quantize)
    return _to_quantized(directory, to, tokenizer, output, texts)


def _to_quantized(
    directory: Path,
    to: Literal["nf4", "int8"],
    tokenizer: Any,
    output: Path,
    texts: Sequence[str],
) -> ExportResult:
    examples = comparison_examples(tokenizer, texts)
    with whole_directory(output) as temporary:
        write_quantized(directory, to, temporary)
        # No texts to tokenize: the tokenizer's files are copies.
        comparison = _compare(directory, lambda: load_quantized(temporary), examples, 0, 0)
        files = {file.name: file for file in sorted(temporary.iterdir())}
        size = sum(file.stat().st_size for file in weight_files(temporary))
        result = _result(output, to, to, size, files, directory, comparison)
        write_json(temporary / RECORD, result.to_dict())
    return result


def _to_gguf(
    directory: Path,
    tokenizer: Any,
    type_: GgufFileType,
    output: Path,
    texts: Sequence[str],
    write: GgufWriter,
    quantize: Path | None,
) -> ExportResult:
    examples = comparison_examples(tokenizer, texts)
    tokenized = (*texts, *HARD_TEXTS, *_texts_with_special_tokens(tokenizer))
    with whole_file(output) as temporary:
        whole = temporary.with_name("whole.gguf")
        write("f32" if quantize else cast(GgufType, type_), whole)
        if quantize:
            quantize_gguf(quantize, whole, type_, temporary)
        else:
            whole.replace(temporary)
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
        result = _result(output, "gguf", type_, size, files, directory, comparison)
        result = replace(
            result, converter=write.converter, warnings=(*warnings, *modelfile.warnings)
        )
        # Without a record, the files may be an export that was killed, or somebody else's.
        for path in (output, beside):
            if path.exists() and file_sha256(path) != result.files[path.name]:
                raise MergeError(
                    f"{path}: already exists, and is not this export (got a file without "
                    f"{_record_of(output).name}). Fix: choose another --output"
                )
        # The record comes first: a record without its file is replaced by the next export.
        write_json(_record_of(output), result.to_dict())
        write_text(beside, modelfile.text)
    return result


def _compare_gguf(
    directory: Path,
    path: Path,
    reader: Any,
    examples: Sequence[Example],
    tokenizer: Any,
    texts: Sequence[str],
) -> tuple[ExportComparison, tuple[str, ...]]:
    same = count_same_tokens(path, reader, tokenizer, texts)
    found = _compare(directory, lambda: load_gguf(path, reader), examples, len(texts), same)
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
    expected = _log_probabilities(directory, examples)
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


def _record_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


def _open(directory: Path) -> tuple[Any, Any]:
    if not (directory / "config.json").is_file():
        raise MergeError(
            f"{directory}: no model directory (got no config.json). Fix: give the directory of a "
            "merged model"
        )
    weight_files(directory)
    return open_config(directory, MergeError), open_tokenizer(directory, MergeError)


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


def _compare(
    directory: Path,
    load_export: Callable[[], Any],
    examples: Sequence[Example],
    texts: int,
    same_tokens: int,
) -> ExportComparison:
    expected = _log_probabilities(directory, examples)
    try:
        export = load_export()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MergeError(
            f"{directory}: export cannot be read back (got {error}). Fix: choose another --type or "
            "--to"
        ) from error
    return compare_export(expected, predict_log_probabilities(export, examples), texts, same_tokens)


def _log_probabilities(directory: Path, examples: Sequence[Example]) -> torch.Tensor:
    model = load_model(directory, dtype=torch.float32)
    return predict_log_probabilities(model.eval(), examples)


def _result(
    output: Path,
    to: ExportFormat,
    kind: str,
    size: int,
    files: Mapping[str, Path],
    directory: Path,
    comparison: ExportComparison | WeightComparison,
) -> ExportResult:
    tolerances = TOLERANCES[kind]
    if isinstance(comparison, ExportComparison):
        is_near = (
            comparison.top1_agreement >= tolerances.least_agreement
            and comparison.mean_kl <= tolerances.most_mean_kl
        )
    else:
        is_near = comparison.same > 0 and not comparison.different
    return ExportResult(
        path=output,
        to=to,
        type=kind,
        weight_bytes=size,
        files={name: file_sha256(file) for name, file in files.items()},
        model={file.name: file_sha256(file) for file in weight_files(directory)},
        comparison=comparison,
        limits=tolerances,
        passed=is_near and comparison.same_tokens == comparison.texts,
    )
