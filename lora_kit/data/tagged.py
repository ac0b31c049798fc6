"""Rows with any number of labels: their labels, and the targets of the head's outputs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from lora_kit.data.labelled import refuse_similar_labels
from lora_kit.data.rows import Row
from lora_kit.data.strict_json import decode_cell
from lora_kit.recipe.multi_label import MultiLabelSpec
from lora_kit.runtime.errors import DataError

EXAMPLE = '{"text": "...", "labels": ["a", "b"]}'


def parse_labels(value: object, origin: str) -> tuple[str, ...]:
    """Return the labels of a row, sorted; a CSV file holds them as JSON text.

    Raises:
        DataError: if they are no list of texts, or one stands twice.
    """
    read = decode_cell(value)
    if not isinstance(read, list) or not all(isinstance(one, str) and one.strip() for one in read):
        raise DataError(
            f"{origin}: labels: not a list of texts (got {value!r:.60}). Fix: write "
            '["a", "b"], or [] for a text without a label'
        )
    twice = next((name for name, count in Counter(read).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{origin}: labels: a label stands twice (got {twice!r}). Fix: remove one")
    return tuple(sorted(read))


def write_labels(labels: Sequence[str]) -> str:
    """Return labels as JSON, sorted."""
    return json.dumps(sorted(labels), ensure_ascii=False)


def read_labels(text: str) -> tuple[str, ...]:
    """Return the labels that `write_labels` wrote."""
    return tuple(json.loads(text))


def label_names(rows: Sequence[Row], spec: MultiLabelSpec) -> list[str]:
    """Return the labels of a head, in the order of its outputs.

    Args:
        rows: training rows.
        spec: the recipe's `multi_label` section.

    Raises:
        DataError: if a row has no list of labels or an unknown label, a label or positive weight
            has no row, or all rows have a label, so that there is nothing to learn.
    """
    counts = Counter(label for row in rows for label in labels_of(row, spec.labels, "data.train"))
    names = spec.labels or sorted(counts)
    refuse_similar_labels(names, "data.train")
    if not names:
        raise DataError("data.train: no row has a label (got [] only). Fix: add rows with labels")
    for name in names:
        if counts[name] in (0, len(rows)):
            having = "no training row has" if not counts[name] else "all training rows have"
            raise DataError(
                f"multi_label.labels: {having} the label, so there is nothing to learn (got "
                f"{name!r}). Fix: remove it, or add rows"
            )
    if isinstance(spec.positive_weights, Mapping):
        unknown = sorted(set(spec.positive_weights) - set(names))
        if unknown:
            raise DataError(
                f"multi_label.positive_weights: unknown label (got {unknown[0]!r}). Fix: use "
                f"{', '.join(names)}"
            )
    return list(names)


def labels_of(row: Row, names: Sequence[str] | None, part: str) -> tuple[str, ...]:
    """Return the labels of a row.

    Args:
        row: the row.
        names: known labels; `None` for any.
        part: part of the recipe's `data` that the row is from, for error messages.

    Raises:
        DataError: if the row has no list of labels, or an unknown label.
    """
    if row.labels is None:
        raise DataError(
            f"{row.origin}: training.objective: multi-label needs a list of labels in each row "
            f"(got none). Fix: give rows of {EXAMPLE}, or map the columns with {part}.N.columns"
        )
    unknown = next(
        (label for label in row.labels if names is not None and label not in names), None
    )
    if names is not None and unknown is not None:
        raise DataError(
            f"{row.origin}: labels: unknown label (got {unknown!r}; the head has "
            f"{', '.join(names)}). Fix: correct the row, or name all labels with multi_label.labels"
        )
    return row.labels


def label_values(labels: Sequence[str], names: Sequence[str]) -> tuple[float, ...]:
    """Return 1 for each of the names that is among the labels, and 0 for the others."""
    return tuple(float(name in labels) for name in names)
