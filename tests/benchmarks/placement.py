"""Which launch and which quantization a model takes on which GPUs, by `plan`'s own estimate.

    python -m tests.benchmarks.placement [--quick]

LoRA of rank 16 on all linear layers, one row of 2,048 tokens a forward pass, all of them supervised,
activations recomputed. For each machine the first of these that takes at most nine tenths of a GPU:
bfloat16 on each GPU, bfloat16 in shards, 4 bits on each GPU. Prints the table of
accelerate_configs/README.md, which a test compares with it, then one JSON object. Nothing is loaded
or downloaded: models are shapes, and a model's shape is what its published configuration says.
`--quick` leaves out all but the smallest model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from lora_kit.preflight.cards import CARDS, MIB
from lora_kit.preflight.launch_file import read_launch_file
from lora_kit.preflight.memory import CUDA_BASE, estimate
from lora_kit.preflight.micro_batch import MicroBatch
from lora_kit.recipe import Recipe

FOLDER = Path(__file__).parents[2] / "accelerate_configs"
BATCH = MicroBatch(rows=1, length=2048, supervised=2048, masked=False)
ROOM = 0.9
NONE = "does not fit"


@dataclass(frozen=True)
class Hardware:
    """GPUs of one kind, and the files to launch by on them, with whole and with divided weights."""

    name: str
    memory: int
    whole: str
    divided: str | None = None


HARDWARE = (
    Hardware("1 x 24 GB", CARDS["A10G 24 GB"] * MIB, "single-gpu.yaml"),
    Hardware("1 x 80 GB", CARDS["H100 80 GB"] * MIB, "single-gpu.yaml"),
    Hardware("8 x 80 GB", CARDS["H100 80 GB"] * MIB, "ddp.yaml", "fsdp2.yaml"),
    Hardware("2 x 8 x 80 GB", CARDS["H100 80 GB"] * MIB, "multi-node.yaml", "multi-node.yaml"),
)


def models() -> dict[str, PretrainedConfig]:
    """Shapes as published: Llama 3.1 8B, Qwen2.5 32B, Llama 3.1 70B."""
    common = {"num_key_value_heads": 8, "tie_word_embeddings": False, "dtype": "bfloat16"}
    return {
        "8B": LlamaConfig(
            vocab_size=128_256,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            **common,
        ),
        "32B": Qwen2Config(
            vocab_size=152_064,
            hidden_size=5120,
            intermediate_size=27_648,
            num_hidden_layers=64,
            num_attention_heads=40,
            **common,
        ),
        "70B": LlamaConfig(
            vocab_size=128_256,
            hidden_size=8192,
            intermediate_size=28_672,
            num_hidden_layers=80,
            num_attention_heads=64,
            **common,
        ),
    }


def recipe(quantization: str) -> Recipe:
    """What is trained."""
    return Recipe.model_validate(
        {
            "name": "placement",
            "backbone": {"model": "m", "quantization": quantization, "dtype": "bfloat16"},
            "adapter": {"rank": 16, "alpha": 32},
            "data": {"train": [{"source": "x"}]},
            "training": {"gradient_checkpointing": True, "batch_size": 16},
        }
    )


@cache
def taken(model: str, quantization: str, file: str) -> int:
    """Bytes of each GPU."""
    sharing = read_launch_file(FOLDER / file).sharing
    config = models()[model]
    return estimate(recipe(quantization), config, BATCH, "cuda", CUDA_BASE, sharing).total


def main() -> None:
    """Estimate and print."""


if __name__ == "__main__":
    main()
