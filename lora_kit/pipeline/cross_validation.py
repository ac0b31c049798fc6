"""Recipe -> verdict on the recipe, from adapters that each leave out a part of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lora_kit.data.dataset import open_rows
from lora_kit.data.folds import split_folds
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Row
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict_file import read_verdict
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.training import train
from lora_kit.recipe.objective import HeadObjective
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import RecipeError
from lora_kit.runtime.files import write_json, write_text
from lora_kit.runtime.processes import process_state
from lora_kit.selection.folds import FOLDS, FoldsVerdict, judge_folds
from lora_kit.training.head_rows.probe_features import row_groups, text_of

# Kind and score of a task of held-out rows, and the target of a row in it.
TASKS: dict[HeadObjective, tuple[str, str, Callable[[Row], dict[str, Any]]]] = {
    "classification": (
        "classification",
        "macro_f1",
        lambda row: {"label": row.label, "cluster": row.cluster},
    ),
    "regression": ("regression", "r2", lambda row: {"scores": dict(row.values or {})}),
    "multi-label": ("multi_label", "macro_f1", lambda row: {"labels": list(row.labels or ())}),
}


def cross_validate(recipe: Recipe, output: Path | None = None) -> FoldsVerdict:
    """Train an adapter for each fold, judge it on the rows that it was not shown, and compare.

    What exists already is used, after an interruption.

    Args:
        recipe: recipe with `data.cross_validation`.
        output: directory of the runs; by default `runs/NAME-folds`.

    Raises:
        LoraKitError: if anything is refused.
    """
    folds = recipe.data.cross_validation
    assert folds is not None  # asked for only with the field
    if (processes := process_state().num_processes) > 1:
        raise RecipeError(
            f"data.cross_validation: one process trains the folds (got {processes} processes). "
            "Fix: start without a launcher"
        )
    directory = (output or Path("runs") / f"{recipe.name}-folds").absolute()
    rows = open_rows(recipe.data, recipe.seed, recipe.training.objective)
    labels = [str(row.label) for row in rows] if _has_classes(recipe) else None
    groups = row_groups(rows, "clusters")
    held_out = split_folds(labels, groups, folds, recipe.seed)
    say(
        f"{directory}: {folds} folds of {len(rows):,} rows in {len(np.unique(groups)):,} groups; "
        "the suites of the recipe are not asked"
    )
    tasks = []
    for number in range(folds):
        say(f"{directory}: fold {number + 1} of {folds}")
        tasks.append(_judged(recipe, rows, held_out == number, directory / f"fold-{number}"))
    verdict = judge_folds(tasks, directory)
    write_json(directory / FOLDS, verdict.to_dict())
    return verdict


def _has_classes(recipe: Recipe) -> bool:
    return recipe.training.objective == "classification"


def _judged(recipe: Recipe, rows: Rows, is_held_out: Any, directory: Path) -> TaskVerdict:
    """Train on the other rows of a fold, and evaluate on its own."""
    directory.mkdir(parents=True, exist_ok=True)
    source = _written(directory / "train.jsonl", recipe, rows.select(~is_held_out))
    items = _written(directory / "held_out.jsonl", recipe, rows.select(is_held_out))
    suite = _suite(directory / "held-out-rows.yaml", recipe, items)
    spec = {
        "train": [{"source": str(source)}],
        "cross_validation": None,
        "rows": None,
        "temperature": None,
    }
    document = recipe.model_dump(mode="json")
    document["data"] |= spec
    document["evaluation"] |= {"suites": [str(suite)], "stopping": "none"}
    own = Recipe.model_validate(document)
    run = RunDirectory(directory / "run")
    trained = train(own, run.root, resume=True)
    evaluate(trained.session, stopping="none")
    trained.close()
    (task,) = read_verdict(run.evaluation).verdict.suites[0].tasks
    return task


def _written(path: Path, recipe: Recipe, rows: Sequence[Row]) -> Path:
    """Write rows as they are read by a recipe and by a task."""
    target = TASKS[_objective(recipe)][2]
    lines = [{"id": row.origin, "text": text_of(row), **target(row)} for row in rows]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def _suite(path: Path, recipe: Recipe, items: Path) -> Path:
    kind, score, _ = TASKS[_objective(recipe)]
    task: dict[str, Any] = {
        "name": "held-out-rows",
        "kind": kind,
        "source": str(items),
        "score": score,
        "max_length": recipe.data.max_length,
    }
    if _has_classes(recipe):
        task["cluster"] = "cluster"
    if recipe.classification and recipe.classification.labels:
        task["labels"] = list(recipe.classification.labels)
    suite = {"name": "held-out-rows", "role": "gain", "tasks": [task]}
    write_text(path, yaml.safe_dump(suite))
    return path


def _objective(recipe: Recipe) -> HeadObjective:
    objective = recipe.training.objective
    assert objective in TASKS  # others are refused with the recipe
    return objective
