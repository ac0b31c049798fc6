"""Which launch and which quantization a model takes on which GPUs, by `plan`'s own estimate.

    python -m tests.benchmarks.placement [--quick]

LoRA of rank 16 on all linear layers, one row of 2,048 tokens a forward pass, all of them
supervised, activations recomputed. For each machine the first of these that takes at most nine
tenths of a GPU: bfloat16 on each GPU, bfloat16 in shards, 4 bits on each GPU, 4 bits in shards,
these in main memory.
Prints the table of accelerate_configs/README.md, which a test compares with it, then one JSON
object. Nothing is loaded or downloaded: a model is its shapes, as its published configuration says
them. `--quick` leaves out all but the smallest model.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from lora_kit.preflight.gpus import GPUS, MIB
from lora_kit.preflight.launch_file import read_launch_file
from lora_kit.preflight.memory import CUDA_BASE, Footprint, footprint
from lora_kit.preflight.micro_batch import MicroBatch
from lora_kit.recipe.recipe import Recipe
from lora_kit.runtime.machine import machine, versions

FOLDER = Path(__file__).parents[2] / "accelerate_configs"
BATCH = MicroBatch(rows=1, length=2048, supervised=2048, masked=False)
ROOM = 0.9


@dataclass(frozen=True)
class Hardware:
    """GPUs of one kind, and the files to launch by on them, with whole and with divided weights."""

    name: str
    gpus: int
    memory: int
    whole: str
    divided: tuple[str, ...] = ()
    packed: tuple[str, ...] = ()


A10G, H100 = GPUS["A10G 24 GB"] * MIB, GPUS["H100 80 GB"] * MIB
PACKED = ("fsdp2-qlora.yaml", "fsdp2-qlora-offload.yaml")
HARDWARE = (
    Hardware("1 x 24 GB", 1, A10G, "single-gpu.yaml"),
    Hardware("1 x 80 GB", 1, H100, "single-gpu.yaml"),
    Hardware("2 x 24 GB", 2, A10G, "ddp.yaml", ("fsdp2.yaml",), PACKED),
    Hardware("4 x 24 GB", 4, A10G, "ddp.yaml", ("fsdp2.yaml",), PACKED),
    Hardware("8 x 80 GB", 8, H100, "ddp.yaml", ("fsdp2.yaml",)),
    # Layers are gathered within a machine before they are gathered between machines.
    Hardware("2 x 8 x 80 GB", 16, H100, "ddp.yaml", ("hsdp.yaml", "multi-node.yaml")),
)


# As published: class, vocabulary, hidden size, that of the MLP, layers, heads.
SHAPES = {
    "8B": (LlamaConfig, 128_256, 4096, 14_336, 32, 32),  # Llama 3.1
    "32B": (Qwen2Config, 152_064, 5120, 27_648, 64, 40),  # Qwen2.5
    "70B": (LlamaConfig, 128_256, 8192, 28_672, 80, 64),  # Llama 3.1
}


def models() -> dict[str, PretrainedConfig]:
    """Configurations of `SHAPES`."""
    return {
        name: kind(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            tie_word_embeddings=False,
            dtype="bfloat16",
        )
        for name, (kind, vocabulary, hidden, inner, layers, heads) in SHAPES.items()
    }


def recipe(quantization: str) -> Recipe:
    """Trained model and method."""
    return Recipe.model_validate(
        {
            "name": "placement",
            "backbone": {"model": "m", "quantization": quantization, "dtype": "bfloat16"},
            "adapter": {"rank": 16, "alpha": 32},
            "data": {"train": [{"source": "x"}]},
            "training": {"gradient_checkpointing": True, "batch_size": 16},
        }
    )


@lru_cache(maxsize=2)
def whole(model: str, quantization: str) -> Footprint:
    """Return the bytes that one GPU alone would hold."""
    return footprint(recipe(quantization), models()[model], BATCH, "cuda", CUDA_BASE)


def taken(model: str, quantization: str, file: str, gpus: int) -> int:
    """Bytes of each of so many GPUs."""
    read = read_launch_file(FOLDER / file)
    several = replace(read, launch=replace(read.launch, asked=gpus, processes=gpus))
    return whole(model, quantization).per_process(several.sharding).total


def cell(model: str, hardware: Hardware) -> str:
    """Return the launch file to use, and the GB of each GPU."""
    ways = [("none", hardware.whole)]
    ways += [("none", file) for file in hardware.divided]
    ways += [("nf4", file) for file in (hardware.whole, *hardware.packed)]
    for quantization, file in ways:
        size = taken(model, quantization, file, hardware.gpus)
        if size <= ROOM * hardware.memory:
            stored = "bfloat16" if quantization == "none" else quantization
            return f"`{file}`, {stored}: {size / 1e9:.0f} GB"
    return "does not fit"


def row(model: str) -> str:
    """The table's line of one model."""
    return f"| {model} | " + " | ".join(cell(model, hardware) for hardware in HARDWARE) + " |"


def header() -> str:
    """The table's first two lines."""
    names = " | ".join(hardware.name for hardware in HARDWARE)
    return f"| model | {names} |\n|---|{'---|' * len(HARDWARE)}"


def main() -> None:
    """Estimate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="the smallest model alone")
    names = list(models())[: 1 if parser.parse_args().quick else None]
    print(header())
    for name in names:
        print(row(name), flush=True)
    print(json.dumps({"models": names, "machine": machine(), "versions": versions()}))


if __name__ == "__main__":
    main()
