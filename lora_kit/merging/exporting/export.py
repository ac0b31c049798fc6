"""Model directory -> another format, read back and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from lora_kit.backbone.fingerprint import weight_files
from lora_kit.merging.exporting.comparison import (
    HARD_TEXTS,
    Comparison,
    compare,
    default_texts,
    load_gguf,
    log_probabilities,
    same_tokens_in_gguf,
    token_rows,
)
from lora_kit.merging.exporting.formats import ExportFormat, GgufType
from lora_kit.merging.exporting.gguf_model import read_shape, write_gguf
from lora_kit.merging.exporting.quantized import load_model, load_quantized, write_quantized
from lora_kit.merging.exporting.vocabulary import read_vocabulary
from lora_kit.runtime.errors import MergeError
from lora_kit.runtime.files import whole_directory, whole_file, write_json
from lora_kit.runtime.hashes import file_sha256

RECORD = "export.json"


@dataclass(frozen=True)
class Limits:
    """How far an export may be from its model: share of equal top tokens, nats a token."""

    least_agreement: float
    most_mean_kl: float


# What rounding alone does to a float32 model of 135M parameters, on which it weighs more than on
# larger ones (512 positions of prose): f32 100% and 0 nats, f16 99.6% and 4e-6, bf16 99.4% and
# 1e-4, q8_0 98.0% and 1.4e-3, int8 89.6% and 0.027, nf4 68.8% and 0.32. The limits are for what is
# broken, such as the rows of queries and keys in another order (41% and 1.4 nats), not for what is
# coarse.
LIMITS = {
    "f32": Limits(0.999, 1e-6),
    "f16": Limits(0.98, 1e-4),
    "bf16": Limits(0.97, 1e-3),
    "q8_0": Limits(0.94, 1e-2),
    "int8": Limits(0.8, 0.15),
    "nf4": Limits(0.5, 1.0),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares.

    Attributes:
        path: file or directory.
        to: format.
        type: how the matrices are stored.
        weight_bytes: of the file, or of the weights in the directory.
        files: sha256 of what was written, by name.
        model: sha256 of each weight file that it was made from.
        passed: within the limits, and every text cut into the same tokens.
    """

    path: Path
    to: ExportFormat
    type: str
    weight_bytes: int
    files: dict[str, str]
    model: dict[str, str]
    comparison: Comparison
    limits: Limits
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"path": self.path.name}


def export(
    directory: Path,
    to: ExportFormat,
    output: Path,
    type_: GgufType | None = None,
    texts: Sequence[str] = (),
) -> Exported:
    """Write a model in another format, read it back from disk and compare the two.

    Both compute in float32 for the comparison, one after the other: four bytes a parameter.

    Args:
        directory: `config.json`, safetensors and tokenizer, such as a merge writes.
        to: `gguf`, or a directory quantized to `nf4` or `int8`.
        output: the file or directory; the figures are written beside it or into it.
        type_: of a GGUF file's matrices, by default `f16`.
        texts: to compare on; by default passages of the Python reference.

    Raises:
        MergeError: if the model cannot be exported; nothing is left then.
    """
    if type_ is not None and to != "gguf":
        raise MergeError("--type goes with --to gguf")
    if output.exists():
        raise MergeError(f"{output}: is there already; choose another --output")
    config, tokenizer = _opened(directory)
    if config.is_encoder_decoder:
        raise MergeError(
            f"{directory}: an encoder with a decoder is exported in no other format; its files "
            "are what AutoModelForSeq2SeqLM loads"
        )
    if getattr(config, "quantization_config", None):
        raise MergeError(f"{directory}: is quantized already; export the merged model")
    texts = texts or default_texts()
    if to == "gguf":
        return _to_gguf(directory, config, tokenizer, type_ or "f16", output, texts)
    return _to_quantized(directory, to, tokenizer, output, texts)


def _to_quantized(
    directory: Path,
    to: Literal["nf4", "int8"],
    tokenizer: Any,
    output: Path,
    texts: Sequence[str],
) -> Exported:
    rows = token_rows(tokenizer, texts)
    with whole_directory(output) as temporary:
        write_quantized(directory, to, temporary)
        # Its tokenizer's files are copies.
        figures = _compared(directory, lambda: load_quantized(temporary), rows, 0, 0)
        files = {file.name: file for file in sorted(temporary.iterdir())}
        size = sum(file.stat().st_size for file in weight_files(temporary))
        result = _judged(output, to, to, size, files, directory, figures)
        write_json(temporary / RECORD, result.to_dict())
    return result


def _to_gguf(
    directory: Path,
    config: Any,
    tokenizer: Any,
    type_: GgufType,
    output: Path,
    texts: Sequence[str],
) -> Exported:
    from gguf import GGUFReader

    rows = token_rows(tokenizer, texts)
    vocabulary = read_vocabulary(directory, tokenizer, read_shape(directory, config).rows)
    cut = (*texts, *HARD_TEXTS, *_special(tokenizer))
    with whole_file(output) as temporary:
        write_gguf(directory, config, vocabulary, type_, output.stem, temporary)
        reader = GGUFReader(temporary)
        same = same_tokens_in_gguf(temporary, reader, tokenizer, cut)
        figures = _compared(directory, lambda: load_gguf(temporary, reader), rows, len(cut), same)
        size = temporary.stat().st_size
        files = {output.name: temporary}
        result = _judged(output, "gguf", type_, size, files, directory, figures)
    write_json(output.with_name(f"{output.name}.json"), result.to_dict())
    return result


def _opened(directory: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    if not (directory / "config.json").is_file():
        raise MergeError(f"{directory}: no model directory (no config.json)")
    weight_files(directory)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        return config, AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise MergeError(f"{directory}: cannot be read: {error}") from error


def _special(tokenizer: Any) -> tuple[str, ...]:
    """Special tokens inside a text, and a chat where there is a template."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    names = " ".join(["a", *added, "b"])
    if not tokenizer.chat_template:
        return (names,)
    chat = [{"role": "user", "content": "2 + 2?"}]
    return (names, tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def _compared(
    directory: Path,
    load_export: Callable[[], Any],
    rows: Sequence[Sequence[int]],
    texts: int,
    same_tokens: int,
) -> Comparison:
    reference = load_model(directory, dtype=torch.float32)
    measured = log_probabilities(reference.eval(), rows)
    del reference
    try:
        export = load_export()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MergeError(f"{directory}: its export cannot be read back: {error}") from error
    return compare(measured, log_probabilities(export, rows), texts, same_tokens)


def _judged(
    output: Path,
    to: ExportFormat,
    kind: str,
    size: int,
    files: Mapping[str, Path],
    directory: Path,
    figures: Comparison,
) -> Exported:
    limits = LIMITS[kind]
    return Exported(
        path=output,
        to=to,
        type=kind,
        weight_bytes=size,
        files={name: file_sha256(file) for name, file in files.items()},
        model={file.name: file_sha256(file) for file in weight_files(directory)},
        comparison=figures,
        limits=limits,
        passed=figures.top1_agreement >= limits.least_agreement
        and figures.mean_kl <= limits.most_mean_kl
        and figures.same_tokens == figures.texts,
    )
