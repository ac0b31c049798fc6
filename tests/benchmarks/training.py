"""Training speed, memory and loss beside TRL's SFTTrainer, on the quickstart's data.

    python -m tests.benchmarks.training [--quick] [--rows N] [--rounds N]

Ours and the peer train in turn, each in its own process, on the same rows, backbone (nf4),
adapter, learning rate, schedule and batch size. All else of the peer is at its defaults, but for
the dtype: TRL computes in bfloat16 by default, which a CPU without bfloat16 instructions does
several times slower than float32; there the peer computes in float32 like ours. On a machine
without a GPU it is also given `use_cpu`, which TRL wants before it computes in bfloat16 there.

`ours_dense` is ours on weights that are not quantized, in the same dtype: what nf4 costs. The share
of the matrix rate is 4 x parameters x tokens a second over what products of large matrices reach
in the dtype that is computed in.

`trl` still casts the adapters to bfloat16, as TRL does with every quantized model. `trl_float32`
has that undone and is what is left of the ratio on a CPU to which bfloat16 is foreign. Each round
has a seed of its own, since the order of the rows alone moves the loss by about a percent.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora_kit.recipe.data import SourceSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.machine import machine, peak_memory, versions
from lora_kit.runtime.matrix_rate import matrix_rate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a rougher figure in two minutes")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--only", choices=tuple(MEASURED), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.rounds = 24, 1
    if arguments.only:
        print(json.dumps(MEASURED[arguments.only](arguments.rows, arguments.seed)))
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURED}
    for number in range(arguments.rounds):
        # Turn about, so that a machine that gets slower or faster does so for both.
        for name in list(MEASURED)[:: 1 if number % 2 == 0 else -1]:
            rounds[name].append(_in_process(name, arguments.rows, arguments.seed + number))
    _print(rounds, arguments.rows)


def _in_process(name: str, rows: int, seed: int) -> dict[str, float]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            __spec__.name,
            "--only",
            name,
            "--rows",
            str(rows),
            "--seed",
            str(seed),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _recipe(rows: int, seed: int) -> Recipe:
    recipe = Recipe.load("quickstart")
    train = [SourceSpec(source="stdlib-docstrings", limit=rows)]
    data = recipe.data.model_copy(update={"train": train, "replay": None})
    return recipe.model_copy(update={"data": data, "seed": seed})


def _setting(rows: int, seed: int, quantization: str = "nf4") -> tuple[Any, ...]:
    from lora_kit.backbone.files import resolve
    from lora_kit.backbone.load import load
    from lora_kit.data.dataset import prepare, validation_rows
    from tests.training_rows import training_rows

    recipe = _recipe(rows, seed)
    spec = recipe.backbone.model_copy(update={"quantization": quantization})
    recipe = recipe.model_copy(update={"backbone": spec})
    backbone = load(resolve(recipe.backbone), recipe.backbone)
    raw, _ = training_rows(recipe.data, 0)
    held_out = prepare(validation_rows(recipe.data, 0), backbone.tokenizer, recipe.data)
    return recipe, backbone, raw, held_out


def _ours(
    rows: int,
    seed: int,
    quantization: str = "nf4",
    watched: AbstractContextManager[Any] | None = None,
) -> dict[str, float]:
    from lora_kit.adapter.attach import attach, coverage
    from lora_kit.data.dataset import prepare
    from lora_kit.training.inputs import TrainingInputs
    from lora_kit.training.trainer import run_training

    recipe, backbone, raw, held_out = _setting(rows, seed, quantization)
    data = prepare(raw, backbone.tokenizer, recipe.data)
    model = attach(backbone, recipe.adapter, recipe.seed)
    with tempfile.TemporaryDirectory() as folder, watched or nullcontext():
        inputs = TrainingInputs(recipe, backbone, model, data, None, RunDirectory(Path(folder)))
        result = run_training(inputs)
    figures = _figures(result.tokens, result.seconds, model, backbone, held_out)
    # Forward, and the gradient of the activations: the weights themselves are frozen.
    parameters = coverage(model).total_parameters
    figures["flops"] = 4 * parameters * figures["tokens_per_second"]
    dtype = getattr(torch, backbone.spec.dtype)
    figures["matrix_rate"] = 1e9 * matrix_rate(backbone.model.device, dtype)
    return figures


def _trl(
    rows: int,
    seed: int,
    float32_adapters: bool = False,
    watched: AbstractContextManager[Any] | None = None,
) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    recipe, backbone, raw, held_out = _setting(rows, seed)
    turns = [
        [{"role": message.role, "content": message.content} for message in row.messages]
        for row in raw
    ]
    dataset = Dataset.from_dict(
        {"prompt": [t[:-1] for t in turns], "completion": [t[-1:] for t in turns]}
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=backbone.model,
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=recipe.training.batch_size,
                num_train_epochs=recipe.training.epochs,
                learning_rate=recipe.training.learning_rate,
                lr_scheduler_type=recipe.training.lr_scheduler,
                warmup_steps=recipe.training.warmup_ratio,
                bf16=backbone.spec.dtype == "bfloat16",
                use_cpu=backbone.model.device.type == "cpu",
                report_to="none",
                save_strategy="no",
                seed=recipe.seed,
            ),
            train_dataset=dataset,
            processing_class=backbone.tokenizer,
            peft_config=LoraConfig(
                r=recipe.adapter.rank,
                lora_alpha=recipe.adapter.alpha,
                target_modules=recipe.adapter.target_modules,
                task_type="CAUSAL_LM",
            ),
        )
        if float32_adapters:
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
        started = time.monotonic()
        with watched or nullcontext():
            trainer.train()
        seconds = time.monotonic() - started
    return _figures(tokens, seconds, trainer.model, backbone, held_out)


def _figures(
    tokens: int, seconds: float, model: Any, backbone: Any, held_out: Any
) -> dict[str, float]:
    from lora_kit.training.validation import validation_loss

    memory = peak_memory()
    loss = validation_loss(model, backbone, held_out, 4096)
    assert loss is not None
    return {
        "tokens_per_second": tokens / seconds,
        "tokens": tokens,
        "validation_loss": loss,
        "peak_memory": memory,
    }


def _print(rounds: dict[str, list[dict[str, float]]], rows: int) -> None:
    median = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for name, runs in rounds.items()
    }
    ours, trl = median["ours"], median["trl"]
    print(" " * 30 + "".join(f"{name:>14}" for name in median))
    for key, scale, unit in (
        ("tokens_per_second", 1.0, "token/s"),
        ("peak_memory", 1e9, "GB"),
        ("validation_loss", 1.0, "nats"),
    ):
        name = f"{key.replace('_', ' ')} ({unit})"
        print(f"{name:30}" + "".join(f"{one[key] / scale:>14.3f}" for one in median.values()))
    print(
        json.dumps(
            {
                "ratio_to_trl": round(ours["tokens_per_second"] / trl["tokens_per_second"], 3),
                "ratio_to_trl_float32": round(
                    ours["tokens_per_second"] / median["trl_float32"]["tokens_per_second"], 3
                ),
                "share_of_matrix_rate": round(ours["flops"] / ours["matrix_rate"], 3),
                "nf4_over_bf16": round(
                    ours["tokens_per_second"] / median["ours_dense"]["tokens_per_second"], 3
                ),
                "loss_difference": round(ours["validation_loss"] / trl["validation_loss"] - 1, 4),
                "memory_over_trl": round(ours["peak_memory"] / trl["peak_memory"], 3),
                "rows": rows,
                "rounds": rounds,
                "machine": machine(),
                "versions": versions(),
            }
        )
    )


MEASURED = {
    "ours": _ours,
    "ours_dense": partial(_ours, quantization="none"),
    "trl": _trl,
    "trl_float32": partial(_trl, float32_adapters=True),
}


if __name__ == "__main__":
    main()
