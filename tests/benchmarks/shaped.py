"""Training speed at the shape of a large model with random weights, beside TRL, on a GPU.

    python -m tests.benchmarks.shaped [--shape 8b|tiny] [--steps N] [--length N]

LoRA on bfloat16 and on nf4 weights, examples of random lengths packed to `--length` tokens, with
and without activation checkpointing; the peer is TRL's SFTTrainer with its own packing, with and
without the Liger kernels. Each in a process of its own, on the same tokens. Prints token/s, peak
memory and the share of the device's matrix rate (4 x parameters x tokens a second, activation
recomputation not counted). Weights are random: nothing here says anything of quality. `--shape
tiny` runs on any machine and shows only that the script works.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lora_kit.preflight.doctor import matrix_rate
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.machine import machine, peak_memory, versions

SHAPES: dict[str, dict[str, int]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 49152,
    },
}
SIDES = ("ours", "trl", "trl_liger")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="8b")
    parser.add_argument("--steps", type=int, default=6, help="of which the first is not counted")
    parser.add_argument("--length", type=int, default=4096, help="tokens a pack")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--nf4", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(_measure(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_model(SHAPES[arguments.shape], Path(folder))
        found = [
            _in_process(arguments, Path(folder), side, nf4, checkpointing)
            for nf4, checkpointing, side in itertools.product((False, True), (False, True), SIDES)
        ]
    _print(found)


def _write_model(shape: dict[str, int], folder: Path) -> None:
    """Random weights, and a real tokenizer whose ids all models of these shapes have."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lora_kit.backbone.files import resolve
    from lora_kit.recipe.backbone import BackboneSpec

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False, pad_token_id=2))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    source = resolve(BackboneSpec(model="smollm2-135m-instruct")).directory
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _in_process(
    arguments: argparse.Namespace, model: Path, side: str, nf4: bool, checkpointing: bool
) -> dict[str, Any]:
    named = {"side": side, "weights": "nf4" if nf4 else "bf16", "checkpointing": checkpointing}
    command = [sys.executable, "-m", __spec__.name, "--side", side, "--model", str(model)]
    command += ["--shape", arguments.shape, "--steps", str(arguments.steps)]
    command += ["--length", str(arguments.length)]
    command += ["--nf4"] * nf4 + ["--checkpointing"] * checkpointing
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # Out of memory, or a kernel that is not installed: a finding, not the end of the table.
        return {**named, "failed": done.stderr.strip().splitlines()[-1][:120]}
    return {**named, **json.loads(done.stdout.splitlines()[-1])}


def _recipe(arguments: argparse.Namespace) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "shaped",
            "backbone": {
                "model": str(arguments.model),
                "quantization": "nf4" if arguments.nf4 else "none",
                "dtype": "bfloat16",
            },
            "adapter": {"rank": 16, "alpha": 32},
            "data": {
                "train": [{"source": "stdlib-docstrings"}],
                "max_length": arguments.length,
                "packing": True,
            },
            "training": {
                "batch_size": 4,
                "learning_rate": 1e-4,
                "lr_scheduler": "constant",
                "gradient_checkpointing": arguments.checkpointing,
            },
        }
    )


def _token_lists(count: int, length: int) -> list[list[int]]:
    numbers = random.Random(0)
    lengths = [numbers.randint(length // 8, length // 2) for _ in range(count)]
    return [[numbers.randrange(100, 49000) for _ in range(size)] for size in lengths]


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    from lora_kit.adapter.attach import attach, coverage
    from lora_kit.backbone.files import resolve
    from lora_kit.backbone.load import load

    recipe = _recipe(arguments)
    backbone = load(resolve(recipe.backbone), recipe.backbone)
    tokens = _token_lists(arguments.steps * recipe.training.batch_size, arguments.length)
    if arguments.side == "ours":
        model = attach(backbone, recipe.adapter, 0)
        rate = _ours(recipe, backbone, model, tokens)
    else:
        model, rate = _trl(recipe, backbone, tokens, arguments.side == "trl_liger")
    parameters = coverage(model).total_parameters
    cuda = torch.cuda.is_available()
    held = torch.cuda.max_memory_allocated() if cuda else peak_memory()
    reachable = 1e9 * matrix_rate(backbone.model.device, torch.bfloat16)
    return {
        "tokens_per_second": rate,
        "peak_memory": held,
        "share_of_matrix_rate": 4 * parameters * rate / reachable,
    }


def _ours(recipe: Recipe, backbone: Any, model: Any, tokens: list[list[int]]) -> float:
    from pyarrow import Table

    from lora_kit.data.prepared import PreparedData, Tally
    from lora_kit.data.rows import Row
    from lora_kit.data.supervision import IGNORE_INDEX, Example
    from lora_kit.training.inputs import TrainingInputs
    from lora_kit.training.trainer import run_training

    examples = [Example(tuple(ids), (IGNORE_INDEX, *ids[1:])) for ids in tokens]
    tally = Tally(["random"])
    for example in examples:
        tally.add(Row("", ""), 0, [example])
    table = Table.from_batches([tally.record(examples, [0] * len(examples))])
    data = PreparedData(table, tally.counts(), tally.digest())
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        result = run_training(TrainingInputs(recipe, backbone, model, data, None, run))
    first, last = result.history[0], result.history[-1]
    return (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])


def _trl(recipe: Recipe, backbone: Any, tokens: list[list[int]], liger: bool) -> tuple[Any, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.monotonic())

    spec = recipe.training
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=backbone.model,
            args=SFTConfig(
                output_dir=folder,
                packing=True,
                max_length=recipe.data.max_length,
                per_device_train_batch_size=1,
                gradient_checkpointing=spec.gradient_checkpointing,
                use_liger_kernel=liger,
                bf16=True,
                use_cpu=not torch.cuda.is_available(),
                learning_rate=spec.learning_rate,
                num_train_epochs=1,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"input_ids": tokens}),
            processing_class=backbone.tokenizer,
            peft_config=LoraConfig(
                r=recipe.adapter.rank,
                lora_alpha=recipe.adapter.alpha,
                target_modules=recipe.adapter.target_modules,
                task_type="CAUSAL_LM",
            ),
            callbacks=[Clock()],
        )
        packs = [len(ids) for ids in trainer.train_dataset["input_ids"]]
        trainer.train()
    counted = sum(packs) * (len(times) - 1) / len(times)
    return trainer.model, counted / (times[-1] - times[0])


def _print(found: list[dict[str, Any]]) -> None:
    print(f"{'weights':8}{'checkpointing':15}{'side':12}{'token/s':>10}{'GB':>8}{'share':>8}")
    for one in found:
        start = f"{one['weights']:8}{one['checkpointing']!s:15}{one['side']:12}"
        if "failed" in one:
            print(f"{start}{one['failed']}")
            continue
        gigabytes = one["peak_memory"] / 1e9
        share = one["share_of_matrix_rate"]
        print(f"{start}{one['tokens_per_second']:10.0f}{gigabytes:8.2f}{share:8.2f}")
    print(json.dumps({"found": found, "machine": machine(), "versions": versions()}))


if __name__ == "__main__":
    main()
