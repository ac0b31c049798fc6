"""Evaluation speed and agreement beside lm-evaluation-harness, on six multiple-choice tasks.

    python -m tests.benchmarks.evaluation [--quick] [--limit N] [--rounds N]

Base and adapter on the same task YAMLs, with no shots and with five: lm-eval in two runs of its
Hugging Face model (batch 16), one of them with the adapter, ours in one evaluation of both arms.
Each measurement has a process of its own, turn about, in which that side first evaluates one item
of each task, so that imports, libraries that load at first use and the files of the model are warm
on both. The time includes loading the model, making the requests and, of ours, the report. It
leaves out lm-eval's description of the machine and the index of its own tasks, which neither side
needs for a task in a file. Both compute in float32.

The shots are the same for every item (the last five rows of its file, which are not evaluated;
sampler `first_n`), as in MMLU. Where shots are drawn anew for each item, items share less.

The items are those in `tests/data/bigbench`. `--quick`: 120 items, 18 of them with shots.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from lora_kit.recipe.backbone import BackboneSpec
from lora_kit.runtime.machine import machine, peak_memory, versions
from tests.bigbench import bigbench_rows

TASKS = (
    "bbq_lite_json__gender_identity_disambig",
    "general_knowledge",
    "goal_step_wikihow__step_inference",
    "intent_recognition",
    "social_iqa",
    "unit_conversion__si_conversion",
)
SHOTS = (0, 5)
# Folder of the tasks that each side evaluates before the clock starts.
WARM = "warm"
BATCH = 16
BACKBONE = BackboneSpec(model="smollm2-135m-instruct", quantization="none", dtype="float32")

# By arm and item: the score and the log-likelihoods of the choices.
Results = dict[str, dict[str, tuple[float, list[float]]]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a third of the items")
    parser.add_argument(
        "--limit", type=int, default=60, help="items of each task; a sixth with shots"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=tuple(MEASURED), help=argparse.SUPPRESS)
    parser.add_argument("--shots", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(MEASURED[arguments.only](arguments.folder, arguments.shots)))
        return
    if arguments.quick:
        arguments.limit, arguments.rounds = 20, 1
    with tempfile.TemporaryDirectory() as temporary:
        folders = {shots: Path(temporary) / str(shots) for shots in SHOTS}
        items = {shots: write_tasks(folders[shots], arguments.limit, shots) for shots in SHOTS}
        for shots, folder in folders.items():
            _in_process("prepare", folder, shots)
        figures: dict[str, list[dict[str, float]]] = {}
        compared = []
        for number in range(arguments.rounds):
            for turn, shots in enumerate(SHOTS):
                # Turn about, so that a machine that gets slower or faster does so for both.
                sides = ("lm_eval", "ours") if (number + turn) % 2 == 0 else ("ours", "lm_eval")
                for side in sides:
                    measured = _in_process(side, folders[shots], shots)
                    figures.setdefault(f"{side}_{shots}", []).append(measured)
                ours, theirs = (_read(folders[shots], s, shots) for s in ("ours", "lm_eval"))
                compared.append(_compare(ours, theirs))
    _print(figures, compared, items)


def _in_process(name: str, folder: Path, shots: int) -> dict[str, float]:
    command = [sys.executable, "-m", __spec__.name, "--only", name]
    command += ["--folder", str(folder), "--shots", str(shots)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def write_tasks(folder: Path, limit: int, shots: int) -> int:
    """Write the tasks to measure and those to warm up with; return the number of measured items.

    Args:
        folder: where to write them; it is made.
        limit: items of each task without shots; a sixth of them with shots, for which lm-eval
            takes many times as long.
        shots: examples in each prompt.
    """
    for place in (folder, folder / WARM):
        place.mkdir(parents=True)
    limit = limit if shots == 0 else max(limit // 6, 1)
    for name in TASKS:
        _write_task(folder / WARM, name, 1)
    return sum(_write_task(folder, name, limit) for name in TASKS)


def _write_task(folder: Path, name: str, limit: int) -> int:
    """Items spread over the file, its last rows as shots, their YAML; gives the items' number."""
    rows = bigbench_rows(name)
    rest, shots = rows[: -max(SHOTS)], rows[-max(SHOTS) :]
    items = rest[:: max(len(rest) // limit, 1)][:limit]
    files = {}
    for split, chosen in (("test", items), ("train", shots)):
        files[split] = str(folder / f"{name}-{split}.jsonl")
        lines = "".join(json.dumps(row) + "\n" for row in chosen)
        Path(files[split]).write_text(lines, encoding="utf-8")
    metric = {"aggregation": "mean", "higher_is_better": True}
    document = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"} | metric, {"metric": "acc_norm"} | metric],
    }
    _task_file(folder, name).write_text(yaml.safe_dump(document), encoding="utf-8")
    return len(items)


def _task_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.yaml"


def _prepare(folder: Path, shots: int) -> dict[str, float]:
    """An adapter that does something, and the data in the cache of `datasets` for both sides."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from lora_kit.backbone.files import resolve

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(resolve(BACKBONE).directory, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(folder / "adapter")
    for place in (folder, folder / WARM):
        for task in TASKS:
            document = yaml.safe_load(_task_file(place, task).read_text(encoding="utf-8"))
            load_dataset("json", **document["dataset_kwargs"])
    return {}


def _lm_eval(folder: Path, shots: int) -> dict[str, float]:
    from lm_eval import evaluator

    # It describes the machine after each run, which takes seconds and is no part of evaluating.
    evaluator.add_env_info = lambda _: None
    _evaluate_by_lm_eval(folder, folder / WARM, shots)
    started = time.monotonic()
    results = _evaluate_by_lm_eval(folder, folder, shots)
    return _measured(folder, "lm_eval", shots, results, time.monotonic() - started)


def _evaluate_by_lm_eval(folder: Path, tasks: Path, shots: int) -> Results:
    import torch
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from lora_kit.backbone.files import resolve

    directory = str(resolve(BACKBONE).directory)
    results: Results = {}
    for arm, adapted in (("base", {}), ("adapter", {"peft": str(folder / "adapter")})):
        evaluated = evaluator.simple_evaluate(
            model="hf",
            model_args={"pretrained": directory, "dtype": "float32"} | adapted,
            tasks=[str(_task_file(tasks, name)) for name in TASKS],
            num_fewshot=shots,
            batch_size=BATCH,
            device="cuda" if torch.cuda.is_available() else "cpu",
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )
        results[arm] = {
            f"{name}/{sample['doc_id']}": (
                sample["acc"],
                [responses[0][0] for responses in sample["resps"]],
            )
            for name, samples in evaluated["samples"].items()
            for sample in samples
        }
    return results


def _ours(folder: Path, shots: int) -> dict[str, float]:
    import pyarrow.parquet as pq

    _evaluate_by_lora_kit(folder, folder / WARM, shots)
    started = time.monotonic()
    output = _evaluate_by_lora_kit(folder, folder, shots)
    seconds = time.monotonic() - started
    results: Results = {}
    for row in pq.read_table(output / "ledger.parquet").to_pylist():
        if row["arm"] in ("base", "adapter"):
            result = row["score"], row["log_likelihoods"]
            results.setdefault(row["arm"], {})[row["item"]] = result
    return _measured(folder, "ours", shots, results, seconds)


def _evaluate_by_lora_kit(folder: Path, tasks: Path, shots: int) -> Path:
    """Evaluate both arms and return the folder of the results."""
    from lora_kit.pipeline import evaluate

    documents = [
        {
            "name": name,
            "kind": "lm_eval",
            "source": str(_task_file(tasks, name)),
            "metric": "acc",
            "shots": shots,
            "max_length": 8192,
        }
        for name in TASKS
    ]
    suite, output = tasks / f"suite-{shots}.yaml", tasks / f"evaluation-{shots}"
    suite.write_text(yaml.safe_dump({"name": "bigbench", "role": "gain", "tasks": documents}))
    evaluate(
        folder / "adapter",
        suites=[str(suite)],
        backbone=BACKBONE,
        output=output,
        no_cache=True,
        stopping="none",
    )
    return output


def _measured(
    folder: Path, side: str, shots: int, results: Results, seconds: float
) -> dict[str, float]:
    (folder / f"{side}-{shots}.json").write_text(json.dumps(results))
    items = sum(map(len, results.values()))
    return {
        "seconds": seconds,
        "items_per_second": items / seconds,
        "peak_memory": peak_memory(),
    }


def _read(folder: Path, side: str, shots: int) -> Results:
    results: Results = json.loads((folder / f"{side}-{shots}.json").read_text())
    return results


def _compare(ours: Results, theirs: Results) -> tuple[int, float]:
    """Items of which the scores differ, and the largest difference of a log-likelihood, nats."""
    mismatches, largest = 0, 0.0
    for arm in ("base", "adapter"):
        if ours[arm].keys() != theirs[arm].keys():
            raise SystemExit(f"arm {arm}: the two sides did not evaluate the same items")
        for item, (score, log_likelihoods) in ours[arm].items():
            their_score, their_log_likelihoods = theirs[arm][item]
            mismatches += score != their_score
            pairs = zip(log_likelihoods, their_log_likelihoods, strict=True)
            largest = max(largest, *(abs(a - b) for a, b in pairs))
    return mismatches, largest


def _print(
    figures: dict[str, list[dict[str, float]]],
    compared: list[tuple[int, float]],
    items: dict[int, int],
) -> None:
    median = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for name, runs in figures.items()
    }
    columns = [f"{side}_{shots}" for shots in SHOTS for side in ("ours", "lm_eval")]
    counts = ", ".join(f"{count} items with {shots} shots" for shots, count in items.items())
    print(f"{counts}; base and adapter; the same shots for every item of a task\n")
    print(" " * 30 + "".join(f"{name:>14}" for name in columns))
    for key, scale, unit in (
        ("seconds", 1.0, "s"),
        ("items_per_second", 1.0, "item/s"),
        ("peak_memory", 1e9, "GB"),
    ):
        title = f"{key.replace('_', ' ')} ({unit})"
        print(f"{title:30}" + "".join(f"{median[name][key] / scale:>14.2f}" for name in columns))
    ratios = {shots: _ratio(median, shots) for shots in SHOTS}
    print(
        json.dumps(
            {
                "ratio_to_lm_eval": ratios[0],
                "ratio_to_lm_eval_5shot": ratios[5],
                "accuracy_mismatches": sum(mismatches for mismatches, _ in compared),
                "max_log_likelihood_difference": max(largest for _, largest in compared),
                "items": items[0],
                "items_5shot": items[5],
                "rounds": figures,
                "machine": machine(),
                "versions": versions() | {"lm_eval": importlib.metadata.version("lm_eval")},
            }
        )
    )


def _ratio(median: dict[str, dict[str, float]], shots: int) -> float:
    """Return the peer's seconds divided by ours."""
    return round(median[f"lm_eval_{shots}"]["seconds"] / median[f"ours_{shots}"]["seconds"], 3)


MEASURED = {"prepare": _prepare, "ours": _ours, "lm_eval": _lm_eval}


if __name__ == "__main__":
    main()
