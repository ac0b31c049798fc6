"""Recipe -> verdict on the recipe, from adapters that each leave out a part of the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lora_kit.data.dataset import open_rows
from lora_kit.data.folds import split_folds
from lora_kit.data.row_sets import Rows
from lora_kit.data.rows import Row
from lora_kit.evaluation.row_tasks import ROW_TASKS, RowTask
from lora_kit.evaluation.task_verdict import TaskVerdict
from lora_kit.evaluation.verdict_file import read_verdict
from lora_kit.pipeline.evaluation import evaluate
from lora_kit.pipeline.training import train
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError, RecipeError
from lora_kit.runtime.files import write_json, write_text
from lora_kit.runtime.processes import process_state
from lora_kit.selection.folds import FOLDS, FoldsVerdict, judge_folds
from lora_kit.training.head_rows.probe_texts import row_groups, text_of


def cross_validate(recipe: Recipe, output: Path | None = None) -> FoldsVerdict:
    """Train an adapter for each fold, judge it on the rows that it was not shown, and compare.

    What exists already is used, after an interruption.

    Args:
        recipe: recipe with `data.cross_validation`.
        output: directory of the runs; by default `runs/NAME-folds`.

    Raises:
        LoraKitError: if anything is refused.
    """
    if (processes := process_state().num_processes) > 1:
        raise RecipeError(
            f"data.cross_validation: one process trains the folds (got {processes} processes). "
            "Fix: start without a launcher"
        )
    directory = (output or Path("runs") / f"{recipe.name}-folds").absolute()
    rows = open_rows(recipe.data, recipe.seed, recipe.training.objective)
    groups = row_groups(rows, "clusters")
    names, held_out = _folds(recipe, rows, groups)
    say(
        f"{directory}: {len(names)} folds of {len(rows):,} rows in {len(np.unique(groups)):,} "
        "groups; the suites of the recipe are not asked"
    )
    tasks = []
    for number, name in enumerate(names):
        own = held_out == number
        trained_on = ~own & ~np.isin(groups, groups[own])
        left_out = int((~own & ~trained_on).sum())
        depending = f"; {left_out:,} rows of other folds depend on its own, and are left out"
        where = f"{directory}: {name}, {number + 1} of {len(names)}"
        say(where + (depending if left_out else ""))
        place = directory / f"fold-{number}"
        tasks.append(_judged(recipe, rows.select(trained_on), rows.select(own), place))
    verdict = judge_folds(tasks, names, directory)
    write_json(directory / FOLDS, verdict.to_dict())
    return verdict


def _folds(
    recipe: Recipe, rows: Rows, groups: NDArray[np.int64]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the names of the folds, and the fold in which each row is held out, (rows,) int64.

    Raises:
        DataError: if the rows cannot be divided.
    """
    wanted = recipe.data.cross_validation
    assert wanted is not None  # asked for only with the field
    if wanted != "sources":
        labels = [str(row.label) for row in rows] if _has_classes(recipe) else None
        names = tuple(f"fold {number + 1}" for number in range(wanted))
        return names, split_folds(labels, groups, wanted, recipe.seed)
    names = tuple(source.name for source in rows.sources)
    if len(names) < 2:
        raise DataError(
            f"data.cross_validation: sources needs two sources of data.train at least (got "
            f"{len(names)}). Fix: name a number of folds, or add a source"
        )
    return names, rows.parts.astype(np.int64)


def _has_classes(recipe: Recipe) -> bool:
    return recipe.training.objective == "classification"


def _judged(recipe: Recipe, others: Rows, own: Rows, directory: Path) -> TaskVerdict:
    """Train on the rows of the other folds, and evaluate on a fold's own."""
    directory.mkdir(parents=True, exist_ok=True)
    source = _written(directory / "train.jsonl", recipe, others)
    items = _written(directory / "held_out.jsonl", recipe, own)
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
    changed = Recipe.model_validate(document)
    run = RunDirectory(directory / "run")
    trained = train(changed, run.root, resume=True)
    evaluate(trained.session, stopping="none")
    trained.close()
    (task,) = read_verdict(run.evaluation).verdict.suites[0].tasks
    return task


def _written(path: Path, recipe: Recipe, rows: Sequence[Row]) -> Path:
    """Write rows as they are read by a recipe and by a task."""
    item, has_classes = _task(recipe).item, _has_classes(recipe)
    lines = [
        {"id": row.origin, **item(text_of(row), row)}
        | ({"cluster": row.cluster} if has_classes else {})
        for row in rows
    ]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def _suite(path: Path, recipe: Recipe, items: Path) -> Path:
    held_out = _task(recipe)
    task: dict[str, Any] = {
        "name": "held-out-rows",
        "kind": held_out.kind,
        "source": str(items),
        "score": held_out.score,
        "max_length": recipe.data.max_length,
    }
    if _has_classes(recipe):
        task["cluster"] = "cluster"
    if recipe.classification and recipe.classification.labels:
        task["labels"] = list(recipe.classification.labels)
    suite = {"name": "held-out-rows", "role": "gain", "tasks": [task]}
    write_text(path, yaml.safe_dump(suite))
    return path


def _task(recipe: Recipe) -> RowTask:
    objective = recipe.training.objective
    task = next((one for known, one in ROW_TASKS.items() if known == objective), None)
    assert task is not None  # others are refused with the recipe
    return task
