"""Rows of a classification: the text of a row, and its class."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lora_kit.data.rows import Row
from lora_kit.data.supervision import Example
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def classification_text(row: Row) -> str:
    """Return the text that a head reads: all turns before the answer."""
    return "\n\n".join(message.content for message in row.messages[:-1])


def count_classes(rows: Sequence[Row], spec: ClassificationSpec) -> dict[str, int]:
    """Count the rows of each class, in the order of the head's outputs.

    Args:
        rows: training rows.
        spec: the recipe's `classification` section; without `labels`, the classes are those of the
            rows, sorted.

    Raises:
        DataError: if a row has no class or an unknown one, a class or class weight has no row, or
            there is only one class.
    """
    counts = Counter(class_of(row, spec.labels, "data.train") for row in rows)
    names = spec.labels or sorted(counts)
    refuse_similar_labels(names, "data.train")
    if len(names) < 2:
        raise DataError(
            f"data.train: a classification needs at least two classes (got only {names[0]!r}). Fix:"
            " add rows of another class"
        )
    empty = [name for name in names if not counts[name]]
    if empty:
        raise DataError(
            f"classification.labels: a class has no training row (got {empty[0]!r}). Fix: remove "
            "it, or add rows"
        )
    if isinstance(spec.class_weights, Mapping):
        unknown = sorted(set(spec.class_weights) - set(names))
        if unknown:
            raise DataError(
                f"classification.class_weights: unknown class (got {unknown[0]!r}). Fix: use "
                f"{', '.join(names)}"
            )
    return {name: counts[name] for name in names}


def refuse_similar_labels(labels: Sequence[str], place: str) -> None:
    """Refuse labels that differ only in white space.

    Raises:
        DataError: if there are any; the message names two.
    """
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(" ".join(label.split()), label)
        if other != label:
            raise DataError(
                f"{place}: labels must differ by more than white space (got {other!r} and "
                f"{label!r}). Fix: write the label of these rows alike"
            )


def class_of(row: Row, classes: Sequence[str] | None, part: str) -> str:
    """Return the class of a row.

    Args:
        row: the row.
        classes: known classes; `None` for any.
        part: part of the recipe's `data` that the row is from, for error messages.

    Raises:
        DataError: if the row has no class, or an unknown one.
    """
    if row.label is None:
        raise DataError(
            f"{row.origin}: training.objective: classification needs a class in each row (got "
            'none). Fix: give rows of {"text": "...", "label": "..."}, or map the columns with '
            f"{part}.N.columns"
        )
    if classes is not None and row.label not in classes:
        raise DataError(
            f"{row.origin}: unknown class (got {row.label!r}; classification.labels has "
            f"{', '.join(classes)}). Fix: correct the row, or add the class"
        )
    return row.label


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[tuple[int, ...], bool]]:
    """Tokenize texts with the tokenizer's own special tokens, and report truncation.

    Texts are truncated to `max_length` or the tokenizer's `model_max_length` tokens, before the
    last special token.

    Returns:
        For each text its token ids, and if the text was truncated.
    """
    max_tokens = min(max_length, tokenizer.model_max_length)
    complete = tokenizer(list(texts), verbose=False)["input_ids"]
    truncated = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    return [
        (tuple(short), len(long) > len(short))
        for short, long in zip(truncated, complete, strict=True)
    ]


def supervise_inputs(examples: Sequence[Example]) -> list[Example]:
    """Return copies of the examples whose labels are their input tokens.

    The audit counts supervised tokens; here it has to look at the texts instead of targets.
    """
    return [dataclasses.replace(example, labels=example.input_ids) for example in examples]
