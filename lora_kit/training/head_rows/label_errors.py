"""Search for label errors in the training rows of a classification, and their removal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_kit.backbone.load import Backbone
from lora_kit.data.audit.label_errors import (
    MAX_SHARE,
    LabelErrors,
    describe_suspects,
    require_cleanlab,
    suspected_rows,
)
from lora_kit.data.dataset import prepare
from lora_kit.data.head_targets import class_indices
from lora_kit.data.row_sets import Rows
from lora_kit.modeling.features import mean_features
from lora_kit.modeling.out_of_fold import OutOfFold, out_of_fold
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.console import say
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.processes import broadcast_from_main
from lora_kit.training.head_rows.probe_texts import row_groups, without_folds


def searches_label_errors(recipe: Recipe) -> bool:
    """Return True if the recipe asks for a search for label errors.

    Raises:
        DataError: if it does, and cleanlab is not installed.
    """
    if recipe.data.audit.label_errors == "none":
        return False
    require_cleanlab()
    return True


def label_errors_of(
    recipe: Recipe, rows: Rows, backbone: Backbone, run: RunDirectory | None
) -> LabelErrors:
    """Search for label errors in the main process, or read those that a run has found.

    Args:
        recipe: recipe of a classification.
        rows: training rows.
        backbone: the base, without an adapter or with a disabled one.
        run: run that resumes or is evaluated, if any.

    Raises:
        DataError: if the rows give no folds, the file of the run is of other rows, too many rows
            would be changed, or a class would lose all rows.
    """
    if run is not None and run.label_errors.is_file():
        found = _read(run.label_errors, rows)
    else:
        value = broadcast_from_main(lambda: find_label_errors(recipe, rows, backbone).to_dict())
        found = LabelErrors.from_dict(value)
    _refuse_doubtful(found)
    _refuse_empty_class(found, rows)
    share = f"{len(found.suspects):,} of {found.rows:,} labels ({found.share:.1%}) look wrong"
    done = {
        "drop": "; these rows are left out",
        "weigh_down": "; these rows are weighed by the probability of their label",
    }
    say(f"data.audit.label_errors: {share}{done.get(found.action, '')}")
    return found


def find_label_errors(recipe: Recipe, rows: Rows, backbone: Backbone) -> LabelErrors:
    """Search for label errors with a linear probe on the backbone's features, out of fold.

    Args:
        recipe: recipe of a classification.
        rows: training rows.
        backbone: the base, without an adapter or with a disabled one.

    Raises:
        DataError: if the rows give no folds.
    """
    assert backbone.head is not None  # only a classification is searched
    classes = backbone.head.outputs.names
    found, labels, origins = judge_labels(recipe, rows, backbone)
    suspects = _known_suspects(found, labels)
    hits = found.probabilities.argmax(axis=1)[found.known] == labels[found.known]
    return LabelErrors(
        action=recipe.data.audit.label_errors,
        rows=len(rows),
        unknown=int((~found.known).sum()),
        accuracy=round(float(hits.mean()), 4),
        suspects=describe_suspects(suspects, found.probabilities, labels, classes, origins),
    )


def judge_labels(
    recipe: Recipe, rows: Rows, backbone: Backbone
) -> tuple[OutOfFold, NDArray[np.int64], list[str]]:
    """Compute out-of-fold probabilities of the rows' labels.

    Args:
        recipe: recipe of a classification.
        rows: training rows.
        backbone: the base, without an adapter or with a disabled one.

    Returns:
        The probabilities; (rows,) int64, class of each row; origin of each row.

    Raises:
        DataError: if the rows give no folds.
    """
    assert backbone.head is not None  # only a classification is searched
    outputs, objective = backbone.head.outputs, recipe.training.objective
    data = prepare(rows, backbone.tokenizer, recipe.data, 0, objective, outputs)
    labels = np.array(class_indices(data), np.int64)
    groups = row_groups(rows, recipe.data.audit.label_error_folds)
    found = out_of_fold(mean_features(backbone, data), labels, groups, len(outputs.names))
    if found is None:
        fix = "set data.audit.label_error_folds=rows, or data.audit.label_errors=none"
        raise without_folds("data.audit.label_errors", len(rows), groups, fix)
    return found, labels, [example.origin for example in data.examples]


def label_error_facts(run: RunDirectory | None) -> dict[str, str]:
    """Return the report's fact on the suspected labels of a run; nothing without a search."""
    if run is None or not run.label_errors.is_file():
        return {}
    found = LabelErrors.from_dict(read_json(run.label_errors, DataError))
    done = {"drop": "left out of the training", "weigh_down": "weighed down in the training"}
    return {
        "Label errors": f"{len(found.suspects):,} of {found.rows:,} training rows suspected, "
        f"{done.get(found.action, 'trained on as they are')} ({run.label_errors.name})"
    }


def _known_suspects(found: OutOfFold, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the suspects among the rows that can be judged, (suspects,) int64."""
    known = np.flatnonzero(found.known)
    present, numbers = np.unique(labels[known], return_inverse=True)
    if len(present) < 2:
        return np.zeros(0, np.int64)
    # cleanlab needs a row of each class.
    probabilities = found.probabilities[np.ix_(known, present)]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return known[suspected_rows(probabilities, numbers)]


def _refuse_doubtful(found: LabelErrors) -> None:
    if found.action != "show" and found.is_doubtful:
        raise DataError(
            f"data.audit.label_errors: {found.action} would change too many rows (got "
            f"{len(found.suspects):,} of {found.rows:,}, allowed: {MAX_SHARE:.0%}): a probe that "
            f"finds {found.accuracy:.0%} of the labels again is too weak to judge them. Fix: set "
            "show and look at the rows, or data.audit.label_error_folds=rows if each row was "
            "labelled by itself"
        )


def _refuse_empty_class(found: LabelErrors, rows: Rows) -> None:
    if found.action != "drop":
        return
    labels = [str(row.label) for row in rows]
    left = Counter(label for label, kept in zip(labels, found.kept(), strict=True) if kept)
    if empty := sorted(set(labels) - set(left)):
        raise DataError(
            f"data.audit.label_errors: drop leaves a class without a training row (got "
            f"{empty[0]!r}). Fix: set show, and look at its rows"
        )


def _read(path: Path, rows: Rows) -> LabelErrors:
    value = read_json(path, DataError)
    try:
        found = LabelErrors.from_dict(value)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a result of a search for label errors (got the keys "
            f"{', '.join(value) or 'none'}). Fix: restore the file from the run"
        ) from error
    named = {suspect.row: suspect.origin for suspect in found.suspects}
    chosen = rows.select(np.isin(np.arange(len(rows)), list(named)))
    if found.rows != len(rows) or {row.origin for row in chosen} != set(named.values()):
        raise DataError(
            f"{path}: the label errors are those of other rows (got {len(rows):,} rows in "
            f"data.train, {found.rows:,} in the file). Fix: restore the rows"
        )
    return found
