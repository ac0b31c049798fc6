"""How far an export is from the model that it was made from, both read from disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_kit.backbone.gguf import PRE_TOKENIZERS
from lora_kit.data.builtin.reference import reference_rows
from lora_kit.merging.distance import kl_divergence, top1_agreement
from lora_kit.merging.exporting.gguf_model import FREQUENCIES
from lora_kit.runtime.errors import MergeError

MOST_POSITIONS = 512
TOKENS_A_TEXT = 64
# What tokenizers of one vocabulary disagree on: digits, runs of spaces, lines, other scripts,
# special tokens in the text.
HARD_TEXTS = (
    "In 2024, 1234567 of 3.14159 and\t0x1F;  x =  42\n\n\n  y  = -7 ",
    "don't WE'LL they've I'd ’s “quoted” naïve café über",
    "你好，世界。 Здравствуй مرحبا 👩\u200d🚀🇩🇪",
    "def f(x):\r\n    return  x**2  # ∑\n\n\tpass",
)


@dataclass(frozen=True)
class Comparison:
    """An export against its model; KL(model || export) in nats a token.

    Attributes:
        positions: at which next-token distributions were compared.
        top1_agreement: share of positions with the same most likely token.
        mean_kl: mean over the positions.
        p99_kl: 99th percentile.
        texts: that were tokenized.
        same_tokens: of these, how many came out as the same tokens.
    """

    positions: int
    top1_agreement: float
    mean_kl: float
    p99_kl: float
    texts: int
    same_tokens: int


def default_texts() -> tuple[str, ...]:
    """Prose that every machine has: passages of the Python reference, evenly spread."""
    rows = reference_rows()
    count = MOST_POSITIONS // TOKENS_A_TEXT
    return tuple(str(row.text) for row in rows[:: len(rows) // count][:count])


def token_rows(tokenizer: Any, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The first tokens of each text, as many as are compared.

    Raises:
        MergeError: if no text has two tokens, so that there is nothing to predict.
    """
    rows = [tuple(tokenizer(text).input_ids) for text in texts]
    share = max(MOST_POSITIONS // len(rows), 2) if rows else 0
    long = tuple(row[: share + 1] for row in rows if len(row) > 1)
    if not long:
        raise MergeError("the texts have no tokens to compare the export on")
    return long[:MOST_POSITIONS]


@torch.inference_mode()
def log_probabilities(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Next-token distributions at each position of each row but its last.

    Returns:
        (positions, vocabulary) float32.
    """
    device = next(model.parameters()).device
    found = []
    for row in rows:
        ids = torch.tensor([row], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        found.append(logits.float().log_softmax(dim=-1).cpu())
    return torch.cat(found)


def compare(model: torch.Tensor, export: torch.Tensor, texts: int, same_tokens: int) -> Comparison:
    """Compare log-probabilities, each (positions, vocabulary) float32.

    Raises:
        MergeError: if one of them is no distribution, or of another vocabulary.
    """
    if model.shape != export.shape:
        raise MergeError(f"the export has {export.shape[1]} tokens, the model {model.shape[1]}")
    kl = kl_divergence(model, export)
    if not math.isfinite(float(kl.sum())):
        raise MergeError("the export's distributions are no numbers; its weights overflowed")
    return Comparison(
        positions=len(model),
        top1_agreement=top1_agreement(model, export),
        mean_kl=float(kl.mean()),
        p99_kl=float(kl.quantile(0.99)),
        texts=texts,
        same_tokens=same_tokens,
    )


def load_gguf(path: Path, reader: Any) -> Any:
    """A GGUF file as transformers reads it, dequantized to float32.

    transformers takes no note of the frequencies that Llama 3.1's file has; here they are used as
    llama.cpp does.

    Args:
        path: of the file.
        reader: `gguf.GGUFReader` of the same; opening one takes seconds.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    for tensor in reader.tensors:
        if tensor.name == FREQUENCIES:
            model.model.rotary_emb.inv_freq /= torch.from_numpy(tensor.data.copy())
    return model.eval()


def same_tokens_in_gguf(path: Path, reader: Any, tokenizer: Any, texts: Sequence[str]) -> int:
    """How many texts the file's tokenizer cuts as the model's does.

    transformers builds it of the file's tokens, kinds and merges; it knows few names of
    pre-tokenizers (of `smollm` it makes `gpt-2`), so that these are put in by the name in the file.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    name = reader.fields["tokenizer.ggml.pre"].contents()
    specification = json.loads(read.backend_tokenizer.to_str())
    specification["pre_tokenizer"], ignore_merges = PRE_TOKENIZERS[name]
    specification["model"]["ignore_merges"] = ignore_merges
    file = Tokenizer.from_str(json.dumps(specification))
    model = tokenizer.backend_tokenizer
    return sum(
        file.encode(text, add_special_tokens=False).ids
        == model.encode(text, add_special_tokens=False).ids
        for text in texts
    )
