"""Rows of a head that reads a text: the outputs of the head, and the target of each row.

A class is the last label of an example, whose other labels are -100, so that code which counts
supervised tokens counts one per example. Numbers, or 1 and 0 for labels, are the example's
`targets`, and its last label is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lora_kit.backbone.heads import REWARD, HeadOutputs, embedding_outputs
from lora_kit.data.labelled import class_of, classification_text, count_classes, encode_texts
from lora_kit.data.paired_texts import require_paired
from lora_kit.data.prepared import PreparedData
from lora_kit.data.rows import Row
from lora_kit.data.scored import numbers_of, output_names
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.tagged import label_names, label_values, labels_of
from lora_kit.data.templates import control_tokens, refuse_control_tokens
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.embedding import EmbeddingSpec
from lora_kit.recipe.multi_label import MultiLabelSpec
from lora_kit.recipe.objective import TEXT_HEADS, HeadObjective
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.regression import RegressionSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Target:
    """Target of a row.

    Attributes:
        label: last label of the example: the index of a class, or 0.
        values: a value for each output of the head; empty for a class.
    """

    label: int = 0
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class TargetReader:
    """Reading of the targets of one kind of head.

    Attributes:
        outputs: function from the training rows and the recipe to the names of the outputs.
        target: function from a row, the names and the part of the data to the row's target.
    """

    outputs: Callable[[Sequence[Row], Recipe], Sequence[str]]
    target: Callable[[Row, Sequence[str], str], Target]


def _classes(rows: Sequence[Row], recipe: Recipe) -> list[str]:
    return list(count_classes(rows, recipe.classification or ClassificationSpec()))


def _class_target(row: Row, names: Sequence[str], part: str) -> Target:
    return Target(label=names.index(class_of(row, names, part)))


def _numbers(rows: Sequence[Row], recipe: Recipe) -> tuple[str, ...]:
    return output_names(rows, recipe.regression or RegressionSpec())


def _numbers_target(row: Row, names: Sequence[str], part: str) -> Target:
    return Target(values=tuple(numbers_of(row, names, part).values()))


def _labels(rows: Sequence[Row], recipe: Recipe) -> list[str]:
    return label_names(rows, recipe.multi_label or MultiLabelSpec())


def _labels_target(row: Row, names: Sequence[str], part: str) -> Target:
    return Target(values=label_values(labels_of(row, names, part), names))


READERS: dict[HeadObjective, TargetReader] = {
    "classification": TargetReader(_classes, _class_target),
    "regression": TargetReader(_numbers, _numbers_target),
    "multi-label": TargetReader(_labels, _labels_target),
}


def head_outputs(rows: Sequence[Row], recipe: Recipe) -> HeadOutputs | None:
    """Return the outputs of a recipe's head; `None` for an objective without one.

    Args:
        rows: training rows, without replay.
        recipe: the recipe.

    Raises:
        DataError: if a row is malformed, or the outputs are not those that the recipe names.
    """
    objective = recipe.training.objective
    if objective == "reward":
        return REWARD
    if objective == "embedding":
        require_paired(rows)
        return embedding_outputs((recipe.embedding or EmbeddingSpec()).pooling)
    if objective not in TEXT_HEADS:
        return None
    return HeadOutputs(objective, tuple(READERS[objective].outputs(rows, recipe)))


def encode_head_rows(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    outputs: HeadOutputs,
) -> list[list[Example]]:
    """Tokenize rows with their targets; each inner list holds one example.

    Args:
        rows: rows with a target.
        tokenizer: tokenizer of the backbone.
        max_length: maximum tokens per example.
        outputs: outputs of the head.

    Raises:
        DataError: if a row holds control tokens, or its target does not fit the outputs.
    """
    control = control_tokens(tokenizer)
    for row in rows:
        refuse_control_tokens(row, control)
    # Errors name data.validation: `head_outputs` has checked the training rows before.
    part = "data.validation"
    targets = [READERS[outputs.kind].target(row, outputs.names, part) for row in rows]
    encoded = encode_texts([classification_text(row) for row in rows], tokenizer, max_length)
    return [
        [
            Example(
                input_ids=ids,
                labels=(*[IGNORE_INDEX] * (len(ids) - 1), target.label),
                truncated=truncated,
                origin=row.origin,
                cluster=row.cluster,
                label=row.target_text,
                targets=target.values,
            )
        ]
        for row, target, (ids, truncated) in zip(rows, targets, encoded, strict=True)
    ]


def class_indices(data: PreparedData) -> list[int]:
    """Return the class index of each example, in order."""
    return [example.labels[-1] for example in data.examples]


def target_matrix(data: PreparedData) -> NDArray[np.float64]:
    """Return the targets of all examples, (examples, outputs) float64."""
    return np.array([example.targets for example in data.examples], dtype=np.float64)
