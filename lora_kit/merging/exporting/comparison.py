"""Compare an export with the model it was made from, both read from disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lora_kit.backbone.open_files import open_gguf, refusing
from lora_kit.backbone.pre_tokenizers import PRE_TOKENIZERS
from lora_kit.data.builtin.reference import reference_rows
from lora_kit.data.supervision import Example
from lora_kit.merging.distance import kl_divergence, top1_agreement
from lora_kit.merging.exporting.gguf_model import FREQUENCIES
from lora_kit.merging.exporting.quantized import load_model
from lora_kit.merging.exporting.vocabulary import CONTROL, USER_DEFINED
from lora_kit.merging.predictions import MAX_POSITIONS, predict_log_probabilities
from lora_kit.runtime.errors import MergeError

TOKENS_PER_TEXT = 64
# Texts on which tokenizers of one vocabulary disagree: digits, runs of spaces, line ends, other
# scripts, special tokens in the text.
HARD_TEXTS = (
    "In 2024, 1234567 of 3.14159 and\t0x1F;  x =  42\n\n\n  y  = -7 ",
    "don't WE'LL they've I'd ’s “quoted” naïve café über",
    "你好，世界。 Здравствуй مرحبا 👩\u200d🚀🇩🇪",
    "def f(x):\r\n    return  x**2  # ∑\n\n\tpass",
)


@dataclass(frozen=True)
class ExportComparison:
    """Distance of an export from its model; KL(model || export) in nats a token.

    Attributes:
        positions: number of positions at which next-token distributions were compared.
        top1_agreement: share of positions with the same most likely token.
        mean_kl: mean KL divergence over the positions.
        p99_kl: 99th percentile of the KL divergence.
        texts: number of texts that were tokenized.
        same_tokens: number of these with the same tokens.
    """

    positions: int
    top1_agreement: float
    mean_kl: float
    p99_kl: float
    texts: int
    same_tokens: int


def default_texts() -> tuple[str, ...]:
    """Return evenly spaced passages of the Python reference, which every machine has."""
    rows = reference_rows()
    count = MAX_POSITIONS // TOKENS_PER_TEXT
    return tuple(str(row.text) for row in rows[:: len(rows) // count][:count])


def comparison_examples(tokenizer: Any, texts: Sequence[str]) -> tuple[Example, ...]:
    """Return the first tokens of each text, all supervised, for about `MAX_POSITIONS` positions.

    Raises:
        MergeError: if no text has two tokens, so that there is nothing to predict.
    """
    rows = [tuple(tokenizer(text).input_ids) for text in texts]
    share = max(MAX_POSITIONS // len(rows), 2) if rows else 0
    usable = [row[: share + 1] for row in rows if len(row) > 1]
    if not usable:
        raise MergeError(
            f"--texts: no text of two tokens or more to compare the export on (got {len(texts)} "
            "texts). Fix: give longer texts"
        )
    return tuple(Example(row, row) for row in usable)


def compare_export(
    model: torch.Tensor, export: torch.Tensor, texts: int, same_tokens: int
) -> ExportComparison:
    """Compare the distributions of an export with those of its model.

    Args:
        model: log-probabilities of the model, (positions, vocabulary) float32.
        export: log-probabilities of the export, (positions, vocabulary) float32.
        texts: number of texts that were tokenized.
        same_tokens: number of these with the same tokens.

    Raises:
        MergeError: if the vocabularies differ, or a value is infinite or NaN.
    """
    if model.shape != export.shape:
        raise MergeError(
            f"export: vocabulary differs from the model's (got {export.shape[1]} tokens, the model "
            f"has {model.shape[1]}). Fix: export again"
        )
    kl = kl_divergence(model, export)
    if not math.isfinite(float(kl.sum())):
        raise MergeError(
            f"export: distributions are infinite or NaN (got mean KL {float(kl.mean()):.2g}), its "
            "weights overflowed. Fix: choose another --type or --to"
        )
    return ExportComparison(
        positions=len(model),
        top1_agreement=top1_agreement(model, export),
        mean_kl=float(kl.mean()),
        p99_kl=float(kl.quantile(0.99)),
        texts=texts,
        same_tokens=same_tokens,
    )


def compare_with_model(
    directory: Path,
    load_export: Callable[[], Any],
    examples: Sequence[Example],
    texts: int,
    same_tokens: int,
) -> ExportComparison:
    """Compare an export with its model, one after the other in memory.

    Args:
        directory: directory of the model, in safetensors.
        load_export: function that reads the export back.
        examples: examples to predict.
        texts: number of texts that were tokenized.
        same_tokens: number of these with the same tokens.

    Raises:
        MergeError: if the export cannot be read back, or its distributions are not finite.
    """
    expected = model_log_probabilities(directory, examples)
    try:
        export = load_export()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MergeError(
            f"{directory}: export cannot be read back (got {error}). Fix: choose another --type or "
            "--to"
        ) from error
    return compare_export(expected, predict_log_probabilities(export, examples), texts, same_tokens)


def model_log_probabilities(directory: Path, examples: Sequence[Example]) -> torch.Tensor:
    """Return the log-probabilities of a model in float32: (positions, vocabulary) float32."""
    model = load_model(directory, dtype=torch.float32)
    return predict_log_probabilities(model.eval(), examples)


def load_gguf(path: Path, reader: Any) -> Any:
    """Load a GGUF file with transformers, dequantized to float32.

    transformers ignores the RoPE frequencies in the file of a Llama 3.1 model; they are applied
    here as in llama.cpp.

    Args:
        path: GGUF file.
        reader: `gguf.GGUFReader` of the file; opening one takes seconds.

    Raises:
        MergeError: if transformers cannot read the file.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    with refusing(
        f"{path.name}: export cannot be read back", "choose another --type or --to", MergeError
    ):
        model = open_gguf(
            AutoModelForCausalLM,
            path,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    for tensor in reader.tensors:
        if tensor.name == FREQUENCIES:
            model.model.rotary_emb.inv_freq /= torch.from_numpy(tensor.data.copy())
    return model.eval()


def count_same_tokens(path: Path, reader: Any, tokenizer: Any, texts: Sequence[str]) -> int:
    """Count the texts that the tokenizer of a GGUF file and the model's tokenize alike.

    Args:
        path: GGUF file.
        reader: `gguf.GGUFReader` of the file.
        tokenizer: the model's tokenizer.
        texts: texts to tokenize.

    Raises:
        MergeError: if the tokenizer of the file cannot be built.
    """
    file, model = _tokenizer_of(path, reader), tokenizer.backend_tokenizer
    return sum(
        file.encode(text, add_special_tokens=False).ids
        == model.encode(text, add_special_tokens=False).ids
        for text in texts
    )


def _tokenizer_of(path: Path, reader: Any) -> Any:
    """Build a file's tokenizer: byte-level BPE from tokens, types and merges, else transformers'.

    The pre-tokenizer of byte-level BPE has only a name in the file; transformers knows few of them
    (it reads `smollm` as `gpt-2`).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import AutoTokenizer

    fields = reader.fields
    if fields["tokenizer.ggml.model"].contents() != "gpt2":
        with refusing(f"{path}: tokenizer cannot be read back", "compare it by hand", MergeError):
            return open_gguf(AutoTokenizer, path).backend_tokenizer
    name = str(fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else "")
    if name not in PRE_TOKENIZERS:
        raise MergeError(
            f"{path}: tokenizer.ggml.pre: not a pre-tokenizer that is known here (got {name!r}). "
            "Fix: compare the tokens by hand"
        )
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
    specification, ignore_merges = PRE_TOKENIZERS[name]
    built = Tokenizer(models.BPE(dict(zip(tokens, range(len(tokens)), strict=True)), merges))
    built.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    built.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    whole = json.loads(built.to_str())
    whole["pre_tokenizer"] = specification
    whole["model"]["ignore_merges"] = ignore_merges
    return Tokenizer.from_str(json.dumps(whole))
