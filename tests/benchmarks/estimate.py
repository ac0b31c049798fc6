"""Memory and time that are foretold, beside those that are measured.

    python -m tests.benchmarks.estimate [--quick] [--largest BYTES]

SmolLM2-135M in float32, stored as it is and in 4 bits (nf4), trained for two steps of one micro
batch each, in a process of its own for every number of rows, length and with or without gradient
checkpointing. The last quarter of each row is learned. What is foretold to take more than
`--largest` is left out. Time: the quickstart's recipe on 24 rows, a probe before the training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.recipe.data import SourceSpec
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.machine import machine, peak_memory, versions

if TYPE_CHECKING:
    from lora_kit.data.prepared import PreparedData
    from lora_kit.data.supervision import Example

MODEL = "smollm2-135m-instruct"
ROWS = (2, 4, 8)
LENGTHS = (128, 512, 1024)
QUANTIZATIONS = ("none", "nf4")
TIMED_ROWS = 24
STEPS = 2


@dataclass(frozen=True)
class Setting:
    """One training."""

    quantization: str
    rows: int
    length: int
    checkpointing: bool


QUICK = (
    Setting("nf4", 2, 128, False),
    Setting("none", 4, 256, False),
    Setting("nf4", 2, 512, True),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="three settings, in two minutes")
    parser.add_argument("--largest", type=float, default=8e9, help="bytes")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(**json.loads(arguments.only))))
        return
    grid = itertools.product(QUANTIZATIONS, ROWS, LENGTHS, (False, True))
    settings = QUICK if arguments.quick else tuple(Setting(*one) for one in grid)
    compared = []
    print(f"{'':34}{'estimated':>12}{'measured':>12}{'ratio':>8}  (GB)")
    for setting in settings:
        expected = foretold(setting)
        if expected > arguments.largest:
            continue
        found = in_process(setting)["peak_memory"]
        compared.append(asdict(setting) | {"estimated": expected, "measured": found})
        name = (
            f"{setting.quantization} {setting.rows} x {setting.length}"
            f"{' recomputed' if setting.checkpointing else ''}"
        )
        print(
            f"{name:34}{expected / 1e9:>12.2f}{found / 1e9:>12.2f}{expected / found:>8.2f}",
            flush=True,
        )
    timed = in_process(None)
    ratio = timed["foretold_seconds"] / timed["seconds"]
    print(
        f"{TIMED_ROWS} rows in {timed['seconds']:.1f} s, foretold {timed['foretold_seconds']:.1f} s"
    )
    print(
        json.dumps(
            {
                "worst_memory_error": round(
                    max(abs(one["estimated"] / one["measured"] - 1) for one in compared), 3
                ),
                "time_ratio": round(ratio, 3),
                "settings": compared,
                "time": timed,
                "machine": machine(),
                "versions": versions(),
            }
        )
    )


def in_process(setting: Setting | None) -> dict[str, Any]:
    """Return the result of `measure` in a process that does nothing else."""
    given = json.dumps(asdict(setting) if setting else {})
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.estimate", "--only", given],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(**setting: Any) -> dict[str, float]:
    """A training's peak memory; without a setting, the time of the quickstart's."""
    return measured_memory(Setting(**setting)) if setting else measured_time()


def recipe_of(setting: Setting) -> Recipe:
    """The recipe of a setting; its data is made by `examples_of`."""
    return Recipe.model_validate(
        {
            "name": "estimate",
            "backbone": {
                "model": MODEL,
                "quantization": setting.quantization,
                "dtype": "float32",
            },
            "data": {"train": [{"source": "made"}], "max_length": setting.length},
            "training": {
                "batch_size": setting.rows,
                "micro_batch_size": setting.rows,
                "gradient_checkpointing": setting.checkpointing,
            },
        }
    )


def examples_of(setting: Setting) -> tuple[Example, ...]:
    """Rows of random tokens for two steps, one row a little shorter than the others."""
    from lora_kit.data.supervision import IGNORE_INDEX, Example

    generator = random.Random(0)
    made = []
    for number in range(STEPS * setting.rows):
        length = setting.length - (4 if number % setting.rows == 0 else 0)
        ids = tuple(generator.choices(range(1000, 40000), k=length))
        masked = length - setting.length // 4
        made.append(Example(ids, (IGNORE_INDEX,) * masked + ids[masked:]))
    return tuple(made)


def prepared(examples: Sequence[Example]) -> PreparedData:
    """Examples as a training takes them."""
    from pyarrow import Table

    from lora_kit.data.prepared import PreparedData, Tally
    from lora_kit.data.rows import Row

    tally = Tally(["made"])
    for example in examples:
        tally.add(Row("", ""), 0, [example])
    table = Table.from_batches([tally.record(examples, [0] * len(examples))])
    return PreparedData(table, tally.counts(), tally.digest())


def foretold(setting: Setting) -> int:
    """Bytes, by the estimate."""
    import torch
    from transformers import AutoConfig

    from lora_kit.backbone.files import resolve
    from lora_kit.preflight.libraries import libraries_memory
    from lora_kit.preflight.memory import estimate_memory
    from lora_kit.preflight.micro_batch import largest_micro_batch
    from lora_kit.training.micro_batcher import MicroBatcher

    recipe = recipe_of(setting)
    config = AutoConfig.from_pretrained(resolve(recipe.backbone).directory)
    batcher = MicroBatcher.of(recipe, 1, torch.device("cpu"), "sdpa")
    batch = largest_micro_batch(prepared(examples_of(setting)), batcher)
    return estimate_memory(recipe, config, batch, "cpu", libraries_memory()).total


def measured_memory(setting: Setting) -> dict[str, float]:
    """Train, and read the peak."""
    from lora_kit.adapter.attach import attach
    from lora_kit.backbone.files import resolve
    from lora_kit.backbone.load import load
    from lora_kit.training.inputs import TrainingInputs
    from lora_kit.training.trainer import run_training

    recipe = recipe_of(setting)
    backbone = load(resolve(recipe.backbone), recipe.backbone)
    loaded = peak_memory()
    model = attach(backbone, recipe.adapter, recipe.seed)
    data = prepared(examples_of(setting))
    with tempfile.TemporaryDirectory() as folder:
        inputs = TrainingInputs(recipe, backbone, model, data, None, RunDirectory(Path(folder)))
        result = run_training(inputs)
    return {"peak_memory": peak_memory(), "loaded": loaded, "seconds": result.seconds}


def measured_time() -> dict[str, float]:
    """Probe, foretell, train."""
    from lora_kit.adapter.attach import attach
    from lora_kit.backbone.files import resolve
    from lora_kit.backbone.load import load
    from lora_kit.data.dataset import prepare
    from lora_kit.preflight.step_timing import estimate_duration, time_micro_batch
    from lora_kit.runtime.processes import process_state
    from lora_kit.training.inputs import TrainingInputs
    from lora_kit.training.micro_batcher import MicroBatcher
    from lora_kit.training.trainer import run_training
    from tests.training_rows import training_rows

    recipe = Recipe.load("quickstart")
    train_on = [SourceSpec(source="stdlib-docstrings", limit=TIMED_ROWS)]
    data_spec = recipe.data.model_copy(update={"train": train_on, "replay": None})
    backbone = load(resolve(recipe.backbone), recipe.backbone)
    rows, _ = training_rows(data_spec, recipe.seed)
    data = prepare(rows, backbone.tokenizer, data_spec)
    model = attach(backbone, recipe.adapter, recipe.seed)
    batcher = MicroBatcher.of(recipe, 1, process_state().device, "sdpa")
    tried = time_micro_batch(model, backbone, data, batcher, recipe.training.gradient_checkpointing)
    expected = estimate_duration(tried, data.lengths, data.lengths[:0], recipe.training, batcher)
    with tempfile.TemporaryDirectory() as folder:
        inputs = TrainingInputs(recipe, backbone, model, data, None, RunDirectory(Path(folder)))
        result = run_training(inputs)
    return {"seconds": result.seconds, "foretold_seconds": expected.training}


if __name__ == "__main__":
    main()
