"""Rows of classes: their text as the backbone reads it, and the class as the one label of it.

`labels` of such an example are all -100 but the last, which is the number of its class: so one
label an example is counted, whatever counts supervised tokens.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lora_kit.data.prepared import PreparedData
from lora_kit.data.rows import Row
from lora_kit.data.templates import control_tokens, refuse_control_tokens
from lora_kit.data.tokenization import IGNORED, Example
from lora_kit.recipe.classification import ClassificationSpec
from lora_kit.runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_of(row: Row) -> str:
    """What a head is shown of a row."""
    return "\n\n".join(message.content for message in row.messages[:-1])


def rows_by_class(rows: Sequence[Row], spec: ClassificationSpec) -> dict[str, int]:
    """How many rows each class has, in the order of the head's outputs.

    Args:
        rows: that are trained on.
        spec: names the classes, or leaves it to the rows.

    Raises:
        DataError: if a row has no class or one that is not named, a named class or weight has no
            row, or there is one class only.
    """
    found: Counter[str] = Counter()
    for row in rows:
        found[_class_of(row, spec.labels, "data.train")] += 1
    names = spec.labels or sorted(found)
    if len(names) < 2:
        raise DataError(f"data.train: every row is of the class {names[0]!r}; two differ at least")
    without = [name for name in names if not found[name]]
    if without:
        raise DataError(
            f"classification.labels: no training row is of the class {without[0]!r}, which could "
            "not be learned; leave it out, or add rows"
        )
    if isinstance(spec.class_weights, Mapping):
        unknown = sorted(set(spec.class_weights) - set(names))
        if unknown:
            raise DataError(
                f"classification.class_weights: {unknown[0]!r} is no class; the classes are "
                f"{', '.join(names)}"
            )
    return {name: found[name] for name in names}


def _class_of(row: Row, possible: Sequence[str] | None, part: str) -> str:
    if row.label is None:
        raise DataError(
            f"{row.origin}: has no class; training.objective: classification learns rows of "
            f'{{"text": "...", "label": "..."}}. {part}.N.columns says which columns are meant'
        )
    if possible is not None and row.label not in possible:
        raise DataError(
            f"{row.origin}: the class {row.label!r} is not in classification.labels: "
            f"{', '.join(possible)}"
        )
    return row.label


def encode_rows(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    classes: Sequence[str],
) -> list[list[Example]]:
    """Tokenize rows, one example each.

    Raises:
        DataError: if a row holds control tokens, no text, or a class that is none of `classes`.
    """
    control = control_tokens(tokenizer)
    for row in rows:
        refuse_control_tokens(row, control)
    # Of what is trained on, classes were looked at before: to choose from them, there is a head.
    numbers = [classes.index(_class_of(row, classes, "data.validation")) for row in rows]
    encoded = encode_texts([text_of(row) for row in rows], tokenizer, max_length)
    return [
        [
            Example(
                input_ids=ids,
                labels=(*[IGNORED] * (len(ids) - 1), number),
                truncated=truncated,
                origin=row.origin,
                cluster=row.cluster,
                label=row.label,
            )
        ]
        for row, number, (ids, truncated) in zip(rows, numbers, encoded, strict=True)
    ]


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[tuple[int, ...], bool]]:
    """The tokens of texts with the tokenizer's own special ones, and whether a text was cut.

    A text is cut before its last special token, at `max_length` or where the model ends.
    """
    most = min(max_length, tokenizer.model_max_length)
    whole = tokenizer(list(texts), verbose=False)["input_ids"]
    cut = tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]
    return [(tuple(short), len(long) > len(short)) for short, long in zip(cut, whole, strict=True)]


def classes_of(data: PreparedData) -> list[int]:
    """The number of each example's class, in their order."""
    return [example.labels[-1] for example in data.examples]


def as_read(examples: Sequence[Example]) -> list[Example]:
    """The examples as texts that are read: an audit of tokens is about those, not about classes."""
    return [dataclasses.replace(example, labels=example.input_ids) for example in examples]
