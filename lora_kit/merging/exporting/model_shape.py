"""Dimensions of a Llama-family model, and the check that it can be exported to GGUF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_kit.runtime.errors import MergeError

# llama.cpp runs these two as one architecture, `llama`.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
ROPE_TYPES = ("default", "llama3")


class NotWrittenError(MergeError):
    """Model that is not written here, but that llama.cpp's converter may know."""


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a Llama model.

    Attributes:
        layers: number of decoder blocks.
        heads: number of query heads.
        key_heads: number of key and value heads.
        head_dim: dimensions of a head.
        rows: rows of the embedding.
        tied: true if the output head is the embedding.
    """

    layers: int
    heads: int
    key_heads: int
    head_dim: int
    rows: int
    tied: bool


def read_shape(directory: Path, config: Any) -> ModelShape:
    """Return the dimensions of a model that can be exported.

    Args:
        directory: model directory, for error messages.
        config: configuration of transformers.

    Raises:
        NotWrittenError: if llama.cpp's `llama` architecture does not compute this model, or
            transformers could not read the export back.
    """
    architecture = (config.architectures or ["(none)"])[0]
    if architecture not in ARCHITECTURES:
        raise NotWrittenError(
            f"{directory}: config.json: architectures: cannot be exported to GGUF (got "
            f"{architecture}). Fix: export one of {', '.join(ARCHITECTURES)}, or use --to nf4 or "
            "int8"
        )
    rope = config.rope_parameters
    for field, value, possible in (
        ("rope_parameters.rope_type", rope.get("rope_type", "default"), ROPE_TYPES),
        ("rope_parameters.partial_rotary_factor", rope.get("partial_rotary_factor"), (None, 1.0)),
        ("hidden_act", config.hidden_act, ("silu",)),
        ("attention_bias", getattr(config, "attention_bias", False), (False,)),
        ("mlp_bias", getattr(config, "mlp_bias", False), (False,)),
        ("sliding_window", getattr(config, "sliding_window", None), (None,)),
        ("quantization_config", getattr(config, "quantization_config", None), (None,)),
    ):
        if value not in possible:
            raise NotWrittenError(
                f"{directory}: config.json: {field}: cannot be exported to GGUF (got {value!r}, "
                f"possible: {', '.join(map(str, possible))}). Fix: use --to nf4 or int8"
            )
    return ModelShape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        rows=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )
