"""Rows of a head that reads a text: the outputs of the head, and the target of each row.

A class is the last label of an example, whose other labels are -100, so that code which counts
supervised tokens counts one per example. Numbers, or 1 and 0 for labels, are the example's
`targets`, and its last label is 0. A tag is the label of the first token of its word, and the other
tokens of the word have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lora_kit.backbone.heads import MASKED, REWARD, HeadOutputs, embedding_outputs
from lora_kit.data.entities import tag_names, tags_of_row, write_tags
from lora_kit.data.labelled import class_of, classification_text, count_classes, encode_texts
from lora_kit.data.paired_texts import require_paired
from lora_kit.data.prepared import PreparedData
from lora_kit.data.rows import Row
from lora_kit.data.scored import numbers_of, output_names
from lora_kit.data.supervision import IGNORE_INDEX, Example
from lora_kit.data.tagged import label_names, label_values, labels_of
from lora_kit.data.templates import control_tokens, refuse_control_tokens
from lora_kit.data.word_tokens import encode_words
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.recipe.embedding import EmbeddingSpec
from lora_kit.recipe.multi_label import MultiLabelSpec
from lora_kit.recipe.objective import TEXT_HEADS, HeadObjective
from lora_kit.recipe.recipe import Recipe
from lora_kit.recipe.regression import RegressionSpec
from lora_kit.recipe.token_classification import TokenClassificationSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Target:
    """Target of a row.

    Attributes:
        label: last label of the example: the index of a class, or 0.
        values: a value for each output of the head; empty for a class.
        tags: index of the tag of each word; empty for a text as a whole.
    """

    label: int = 0
    values: tuple[float, ...] = ()
    tags: tuple[int, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Tokens of a row with their labels.

    Attributes:
        input_ids: token ids.
        labels: label of each token; -100 for none.
        truncated: true if the text was longer than the limit.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: bool


Encode = Callable[
    [Sequence[Row], Sequence[Target], "PreTrainedTokenizerBase", int], Sequence[Encoded]
]


def _encode_texts(
    rows: Sequence[Row], targets: Sequence[Target], tokenizer: PreTrainedTokenizerBase, size: int
) -> list[Encoded]:
    """Label the last token of each text."""
    encoded = encode_texts([classification_text(row) for row in rows], tokenizer, size)
    return [
        Encoded(ids, (*[IGNORE_INDEX] * (len(ids) - 1), target.label), truncated)
        for target, (ids, truncated) in zip(targets, encoded, strict=True)
    ]


def _encode_words(
    rows: Sequence[Row], targets: Sequence[Target], tokenizer: PreTrainedTokenizerBase, size: int
) -> list[Encoded]:
    """Label the first token of each word."""
    found = []
    encoded = encode_words([row.words for row in rows], tokenizer, size)
    for target, one in zip(targets, encoded, strict=True):
        labels = [IGNORE_INDEX] * len(one.input_ids)
        for tag, start in zip(target.tags, one.starts, strict=True):
            if start is not None:
                labels[start] = tag
        found.append(Encoded(one.input_ids, tuple(labels), one.truncated))
    return found


@dataclass(frozen=True)
class TargetReader:
    """Reading of the targets of one kind of head.

    Attributes:
        outputs: function from the training rows and the recipe to the names of the outputs.
        target: function from a row, the names and the part of the data to the row's target.
        encode: function from rows, targets, tokenizer and maximum length in tokens to tokens.
        text: function from a row to its target as text.
    """

    outputs: Callable[[Sequence[Row], Recipe], Sequence[str]]
    target: Callable[[Row, Sequence[str], str], Target]
    encode: Encode = _encode_texts
    text: Callable[[Row], str | None] = attrgetter("target_text")


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


def _tags(rows: Sequence[Row], recipe: Recipe) -> list[str]:
    return tag_names(rows, recipe.token_classification or TokenClassificationSpec())


def _tags_target(row: Row, names: Sequence[str], part: str) -> Target:
    return Target(tags=tuple(names.index(tag) for tag in tags_of_row(row, names, part)))


def _tags_text(row: Row) -> str:
    return write_tags(row.words, row.tags or ())


READERS: dict[HeadObjective, TargetReader] = {
    "classification": TargetReader(_classes, _class_target),
    "regression": TargetReader(_numbers, _numbers_target),
    "multi-label": TargetReader(_labels, _labels_target),
    "token-classification": TargetReader(_tags, _tags_target, _encode_words, _tags_text),
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
    if objective == "mlm":
        return MASKED
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
    reader = READERS[outputs.kind]
    targets = [reader.target(row, outputs.names, part) for row in rows]
    encoded = reader.encode(rows, targets, tokenizer, max_length)
    return [
        [
            Example(
                input_ids=one.input_ids,
                labels=one.labels,
                truncated=one.truncated,
                origin=row.origin,
                cluster=row.cluster,
                label=reader.text(row),
                targets=target.values,
            )
        ]
        for row, target, one in zip(rows, targets, encoded, strict=True)
    ]


def class_indices(data: PreparedData) -> list[int]:
    """Return the class index of each example, in order."""
    return [example.labels[-1] for example in data.examples]


def target_matrix(data: PreparedData) -> NDArray[np.float64]:
    """Return the targets of all examples, (examples, outputs) float64."""
    return np.array([example.targets for example in data.examples], dtype=np.float64)
