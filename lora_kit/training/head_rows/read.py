"""Training rows of a head that reads a text: checked, weighed, and with those that are added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_kit.backbone.load import Backbone
from lora_kit.data.row_sets import Rows, concatenate_rows
from lora_kit.data.training_rows import TrainingRows
from lora_kit.recipe.objective import TEXT_HEADS
from lora_kit.recipe.recipe import Recipe
from lora_kit.runs.directory import RunDirectory
from lora_kit.runtime.errors import DataError
from lora_kit.runtime.files import read_json
from lora_kit.runtime.processes import broadcast_from_main
from lora_kit.training.generated_records import Records
from lora_kit.training.head_rows.augmentation import augmented_rows
from lora_kit.training.head_rows.domain_weights import find_domain_weights
from lora_kit.training.head_rows.label_errors import label_errors_of, searches_label_errors
from lora_kit.training.head_rows.paraphrases import (
    find_paraphrases,
    read_paraphrases,
    require_writer,
)
from lora_kit.training.head_rows.pseudo_labels import (
    PseudoLabels,
    find_pseudo_labels,
    pseudo_rows,
    refuse_harm,
)

PSEUDO_LABELS, WEIGHTS, PARAPHRASES = "pseudo_labels", "weights", "paraphrases"


def changes_rows(recipe: Recipe) -> bool:
    """Return True if rows of a head are searched, weighed or added to before training.

    Raises:
        DataError: if a package that this needs is not installed.
        BackboneError: if there is no such writer of paraphrases.
    """
    augmentation = recipe.data.augmentation
    if augmentation and augmentation.paraphrase:
        require_writer(augmentation.paraphrase)
    is_head = recipe.training.objective in TEXT_HEADS
    return is_head and (searches_label_errors(recipe) or bool(recipe.data.changed))


def read_head_rows(
    recipe: Recipe, sources: Rows, backbone: Backbone, run: RunDirectory | None
) -> TrainingRows:
    """Return the training rows: labelled ones, pseudo-labelled ones, then changed copies.

    Args:
        recipe: recipe of a head that reads a text.
        sources: opened sources of `data.train`.
        backbone: the base, without an adapter or with a disabled one.
        run: run that resumes or is evaluated, which has recorded what was found, if any.

    Raises:
        DataError: if a source cannot be read, or anything is refused.
    """
    recorded = _recorded(run)

    def once(kind: str, find: Callable[[], Any]) -> Any:
        return recorded[kind] if kind in recorded else broadcast_from_main(find)

    errors = None
    if searches_label_errors(recipe):
        errors = label_errors_of(recipe, sources, backbone, run)
    own = sources.select(errors.kept()) if errors else sources
    weights = np.ones(len(own))
    if errors:
        for row, weight in errors.weights.items():
            weights[row] = weight
    generated: dict[str, Any] = {}
    if recipe.data.reweight:
        generated[WEIGHTS] = once(
            WEIGHTS, lambda: find_domain_weights(recipe, own, backbone).weights.tolist()
        )
        weights = weights * _fitting(generated[WEIGHTS], own, run)
    rows = own
    if recipe.data.unlabeled:
        value = once(PSEUDO_LABELS, lambda: find_pseudo_labels(recipe, own, backbone).to_dict())
        found, generated[PSEUDO_LABELS] = PseudoLabels.from_dict(value), value
        refuse_harm(found)
        rows = concatenate_rows([own, pseudo_rows(recipe, found)])
        added = np.full(len(found.labels), recipe.data.unlabeled.weight)
        weights = np.concatenate([weights, added])
    if spec := recipe.data.augmentation:
        if spec.paraphrase:
            generated[PARAPHRASES] = once(PARAPHRASES, lambda: _paraphrases(recipe, rows))
        paraphrases = read_paraphrases(generated.get(PARAPHRASES, []))
        copies, origins = augmented_rows(rows, spec, recipe.seed, paraphrases)
        rows = concatenate_rows([rows, copies])
        weights = np.concatenate([weights, weights[origins]])
    named = {row: float(weights[row]) for row in np.flatnonzero(weights != 1).tolist()}
    return TrainingRows(rows, 0, generated, errors, own, named)


def _paraphrases(recipe: Recipe, rows: Rows) -> Records:
    spec = recipe.data.augmentation
    assert spec is not None
    found = find_paraphrases(rows, spec, recipe.seed, recipe.data.max_length)
    return [asdict(one) for one in found]


def _recorded(run: RunDirectory | None) -> Mapping[str, Any]:
    """Return what a run has recorded of its rows, by kind."""
    if run is None or not run.self_distillation.is_file():
        return {}
    return read_json(run.self_distillation, DataError)


def _fitting(weights: list[float], rows: Rows, run: RunDirectory | None) -> NDArray[np.float64]:
    if len(weights) != len(rows):
        place = run.self_distillation if run else "data.reweight"
        raise DataError(
            f"{place}: the weights are those of other rows (got {len(rows):,} rows in data.train, "
            f"{len(weights):,} weights). Fix: restore the rows"
        )
    return np.array(weights)
