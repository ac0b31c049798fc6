"""Every method that trains, on the 135M backbone: parameters, speed, memory, gain, forgetting.

    python -m tests.benchmarks.methods [--quick] [--output DIR] [--methods "a;b"] [--workers N]
                                       [--rates]

Each trains on 64 one-line docstrings in float32 (16 steps of 4 rows), at two learning rates; that
with the lower loss on validation rows is measured on held-out ones, so that the rate is not picked
by what is reported. Each has a process of its own, of whose memory the peak is told. What is there
already under `--output` is not trained again. Gain: nats per token of the held-out answers;
forgetting: nats per token of prose of the language reference; both with 95% intervals over clusters
of items, one seed. `--rates` measures nothing but speed, three steps each, in one go: what tokens a
second of methods are to be compared by. `--quick`: these of LoRA, DoRA and full training.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import typing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from lora_kit.pipeline import evaluate, train
from lora_kit.recipe.adapter import NOT_MERGED, PeftMethod
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import LoraKitError
from lora_kit.runtime.machine import machine, versions
from tests.benchmarks.plane import (
    Task,
    falls_of,
    interval,
    is_done,
    recipe_of,
    suites_of,
    tasks_of,
    turned,
)

METHODS = typing.get_args(PeftMethod)
# Learning rates to pick from: what starts at pretrained weights or at their largest directions
# wants less than LoRA, what has few parameters or moves directions alone wants more.
RATES = (1e-3, 1e-2)
LOWER, HIGHER = (1e-4, 1e-3), (1e-2, 1e-1)
OTHER_RATES: dict[str, tuple[float, ...]] = {
    "full": (5e-5, 5e-4),
    **dict.fromkeys(("last-2", "osf", "lora, pissa_niter_16", "lora, olora"), LOWER),
    **dict.fromkeys(("lora, corda", "lora, lora_ga", "tinylora", "waveft"), LOWER),
    **dict.fromkeys(("prompt_tuning", "p_tuning", "prefix_tuning", "vera", "pvera"), HIGHER),
    **dict.fromkeys(("fourierft", "unilora", "vblora", "ia3"), HIGHER),
}
# What a method wants besides its name.
OPTIONS: dict[str, dict[str, Any]] = {
    # Blocks that divide 576, 1536 and 192.
    "c3a": {"options": {"block_size": 64}},
    "road": {"options": {"group_size": 64}},
    "vblora": {"options": {"vector_length": 64}},
    # Directions have their whole length from the first step on, whatever the rate; with PEFT's 15
    # each rate from 1e-4 to 1e-2 ended in an explosion.
    "delora": {"options": {"delora_lambda": 1}},
    "trainable_tokens": {"options": {"token_indices": list(range(256))}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora, rslora": {"method": "lora", "options": {"use_rslora": True}},
    "lora, dora": {"method": "lora", "options": {"use_dora": True}},
    "lora, orthogonal": {"method": "lora", "options": {"init_lora_weights": "orthogonal"}},
    **{
        f"lora, {start}": {"method": "lora", "options": {"init_lora_weights": start}}
        for start in ("pissa_niter_16", "olora", "corda", "lora_ga", "eva")
    },
    "full": {"method": "full"},
    "last-2": {"method": "last-2"},
}
SHORT: dict[str, Any] = {"data": {"validation": [{
    "source": "stdlib-docstrings", "split": "validation", "limit": 16,
}]}}  # fmt: skip


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="speed of three methods alone")
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    parser.add_argument("--methods", help="some of them, separated by semicolons")
    parser.add_argument("--workers", type=int, default=1, help="methods at the same time")
    parser.add_argument("--rates", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rates, arguments.methods = True, "lora;lora, dora;full"
    arguments.output.mkdir(parents=True, exist_ok=True)
    adapters = {name: {"method": name, **OPTIONS.get(name, {})} for name in METHODS}
    adapters |= VARIANTS
    if arguments.methods:
        adapters = {name: adapters[name] for name in arguments.methods.split(";")}
    task = next(iter(tasks_of(arguments.output)))
    task = Task(task.name, {**task.train, "limit": 64}, {**task.held_out, "limit": 48})
    figures: dict[str, Any]
    if arguments.rates:
        figures = {name: _speed(task, adapter) for name, adapter in adapters.items()}
    else:
        figures = dict(_each(arguments.output, task, adapters, arguments.workers))
        _print(figures)
    print(json.dumps({"figures": figures, "machine": machine(), "versions": versions()}))


def _each(
    output: Path, task: Task, adapters: dict[str, dict[str, Any]], workers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of those that train; the others are told with their reason."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawned, max_tasks_per_child=1) as pool:
        running: dict[str, Future[dict[str, Any] | None]] = {
            name: pool.submit(_measured, output, task, name, adapter)
            for name, adapter in adapters.items()
        }
        for name, future in running.items():
            try:
                found = future.result()
            except Exception as error:  # One defect is to be told, and not to cost the others.
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                continue
            if found is not None:
                yield name, found


def _speed(task: Task, adapter: dict[str, Any]) -> float | None:
    """Tokens a second of three steps, or nothing where it does not train."""
    # Three steps: AdaLoRA has no less.
    few = Task(task.name, {**task.train, "limit": 12}, task.held_out)
    try:
        recipe = recipe_of(few, 0, {"adapter": adapter})
        with tempfile.TemporaryDirectory() as folder:
            return round(train(recipe, Path(folder) / "run").result.tokens_per_second, 1)
    except LoraKitError as error:
        print(error)
        return None


def _measured(
    output: Path, task: Task, name: str, adapter: dict[str, Any]
) -> dict[str, Any] | None:
    suites = {"evaluation": {"suites": suites_of(output, task, only=("prose",))}}
    trained: dict[float, tuple[float, RunDirectory]] = {}
    for rate in OTHER_RATES.get(name, RATES):
        run = RunDirectory(output / name.replace(", ", "-") / f"{rate:g}")
        change = {"adapter": adapter, "training": {"learning_rate": rate}}
        if not run.adapter.is_dir():
            print(f"{name}, {rate:g}", flush=True)
            try:
                train(recipe_of(task, 0, SHORT, change, suites), run.root, resume=True)
            except LoraKitError as error:
                print(f"{name}, {rate:g}: {error}", flush=True)
                continue
        trained[rate] = run.load_record()["training"]["validation_after"], run
    if not trained:
        return None
    rate, (_, run) = min(trained.items(), key=lambda one: one[1][0])
    if not is_done(run.root):
        evaluate(run.root, stopping="none")
    falls, record = falls_of([run.root]), run.load_record()
    # What the one rate left in memory counts for the next; their need is the same.
    peaks = [one.load_record()["training"]["peak_memory"] for _, one in trained.values()]
    return {
        "learning_rate": rate,
        "gain": interval([falls["gain"]]),
        "forgetting": interval([turned(falls["prose"])]),
        "parameters": record["coverage"]["trainable_parameters"],
        "tokens_per_second": round(record["training"]["tokens_per_second"], 1),
        "peak_memory_gb": round(min(peaks) / 1e9, 2),
        "merges": adapter["method"] not in NOT_MERGED,
    }


def _print(figures: dict[str, dict[str, Any]]) -> None:
    print("\nnats per token (95% interval)")
    print(f"{'method':22}{'rate':>7}{'gain':>28}{'forgetting':>28}  parameters token/s   GB merges")
    for name, one in sorted(figures.items(), key=lambda pair: -pair[1]["gain"][0]):
        cells = "".join(
            f"{mean:+.3f} ({low:+.3f} to {high:+.3f})".rjust(28)
            for mean, low, high in (one["gain"], one["forgetting"])
        )
        print(
            f"{name:22}{one['learning_rate']:>7g}{cells}{one['parameters']:>12,}"
            f"{one['tokens_per_second']:>8}{one['peak_memory_gb']:>5.1f}"
            f"{'yes' if one['merges'] else 'no':>7}"
        )


if __name__ == "__main__":
    main()
