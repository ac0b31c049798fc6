"""Small random checkpoints of several layouts, for what a merge does to every tensor."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_kit.adapter.attach import attach
from lora_kit.adapter.saved import save_adapter
from lora_kit.backbone.files import resolve
from lora_kit.backbone.load import load
from lora_kit.recipe.adapter import AdapterSpec
from lora_kit.recipe.backbone import BackboneSpec

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


@pytest.fixture(scope="session")
def random_adapter(tiny: Path) -> Callable[..., Path]:
    """Saves an adapter of the tiny model with random weights, as a training would leave it."""

    def save(directory: Path, seed: int, **options: Any) -> Path:
        spec = BackboneSpec(model=str(tiny), quantization="none", dtype="float32")
        backbone = load(resolve(spec), spec)
        model = attach(backbone, AdapterSpec(**({"rank": 4, "alpha": 8} | options)), seed=seed)
        torch.manual_seed(seed + 100)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        save_adapter(model, backbone, directory)
        return directory

    return save


@pytest.fixture(scope="module")
def saved(random_adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("adapters")
    return [
        random_adapter(directory / "one", 0),
        random_adapter(directory / "two", 1, rank=2, alpha=3),
        random_adapter(directory / "three", 2, target_modules=["q_proj", "down_proj"]),
    ]


@pytest.fixture
def three(saved: list[Path], tmp_path: Path) -> list[Path]:
    """Adapters of two ranks, the last one of two kinds of modules only; copies, to be changed."""
    return [Path(shutil.copytree(path, tmp_path / path.name)) for path in saved]
