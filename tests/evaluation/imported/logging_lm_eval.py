"""Runs of lm-eval that log their samples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}


def write_task(path: Path, fields: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a task's YAML, with its rows beside it."""
    data = path.with_suffix(".json")
    data.write_text(json.dumps(rows))
    dataset = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    path.write_text(yaml.safe_dump({"task": path.stem, "test_split": "test", **dataset, **fields}))
    return path


def log_samples(
    task: Path, folder: Path, model: str, seed: int = 0, **model_arguments: Any
) -> dict[str, float]:
    """Evaluate a model of lm-eval, write results and samples, and return lm-eval's scores."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(folder))
    with pytest.MonkeyPatch.context() as patched:
        # Facts that are not read here: all packages of the machine, and a tokenizer of the hub.
        for facts in ("add_env_info", "add_tokenizer_info"):
            patched.setattr(f"lm_eval.evaluator.{facts}", lambda *arguments: None)
        results = lm_eval.simple_evaluate(
            model=model,
            model_args=model_arguments,
            tasks=[str(task)],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            batch_size=8,
            device="cpu",
            random_seed=seed,
            evaluation_tracker=tracker,
        )
    assert results is not None
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name=task.stem, samples=samples[task.stem])
    scores: dict[str, float] = results["results"][task.stem]
    return scores
