"""Small random checkpoints of several layouts, for what a merge does to every tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """bfloat16: tied; untied in several files; experts in files of their own (two layouts)."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    torch.manual_seed(0)
    experts = {"num_experts_per_tok": 2}
    models: dict[str, tuple[Any, dict[str, Any]]] = {
        "tied": (LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)), {}),
        "untied": (
            LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
            {"max_shard_size": "60KB"},
        ),
        "biased": (LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)), {}),
        "mixtral": (
            MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, **experts)),
            {},
        ),
        "qwen3-moe": (
            Qwen3MoeForCausalLM(
                Qwen3MoeConfig(
                    **SIZES, num_experts=12, moe_intermediate_size=32, head_dim=16, **experts
                )
            ),
            {},
        ),
    }
    root = tmp_path_factory.mktemp("checkpoints")
    for name, (model, options) in models.items():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, std=0.1)
        model.to(torch.bfloat16).save_pretrained(root / name, **options)
    return {name: root / name for name in models}
